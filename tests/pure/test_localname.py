"""The names of local images."""

import pytest

from lazyfs.errors import MountError
from lazyfs.localname import parse_local_image


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("erofs:image", ["image"]),
        ("erofs:/a/b.erofs", ["/a/b.erofs"]),
        ("erofs:a,device=b", ["a", "b"]),
        ("erofs:a,device=b,device=c d", ["a", "b", "c d"]),
        ("erofs:with,comma", ["with,comma"]),
        ("erofs:with:colon", ["with:colon"]),
        ("erofs:erofs:a", ["erofs:a"]),
    ],
)
def test_a_local_image_and_its_devices(name: str, paths: list[str]):
    assert parse_local_image(name) == paths


@pytest.mark.parametrize("name", ["erofs:", "erofs:a,device=", "erofs:,device=b"])
def test_a_missing_path_is_refused(name: str):
    with pytest.raises(MountError, match="erofs:FILE"):
        parse_local_image(name)


@pytest.mark.parametrize("name", ["", "image", "oci:a", "EROFS:a", "docker://erofs:a", "/erofs:a"])
def test_other_transports_are_left_to_others(name: str):
    assert parse_local_image(name) is None
