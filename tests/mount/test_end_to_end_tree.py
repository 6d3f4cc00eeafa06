"""A converted image, mounted lazily, is what the kernel makes of its layers."""

import hashlib
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import images
from tests.support.converted import ConvertedImage
from tests.support.layer_blob import take_apart
from tests.support.lazy_mounts import mounted
from tests.support.mounting import needs_fuse
from tests.support.overlay_oracle import mount_erofs, tar_overlay
from tests.support.trees import MADE_BY_TAR, Facts, assert_same, look
from tests.support.verity_oracle import accepts

pytestmark = [pytest.mark.mount, needs_fuse]

MIN_FILES, MIN_BYTES = 10_000, 300_000_000
BLOCK = 4096
COMMAND_WITHIN_S = 120


@pytest.fixture(scope="module")
def shown(big_image: ConvertedImage, tmp_path_factory) -> Mapping[bytes, Facts]:
    """Everything that a lazy mount shows, all of it fetched from the registry."""
    folder = tmp_path_factory.mktemp("shown")
    with mounted(big_image.name, folder / "mnt", "--cache-dir", folder / "cache") as mount:
        seen = look(mount.path)
        assert mount.totals()["errors"] == 0
        return seen


def tar_layers(image: ConvertedImage) -> list[Path]:
    digests = [layer["sourceDigest"] for layer in image.result["images"][0]["layers"]]
    return [image.layout / "blobs" / digest.replace(":", "/") for digest in digests]


def test_the_image_is_as_large_and_as_odd_as_promised(
    big_image: ConvertedImage, shown: Mapping[bytes, Facts], tmp_path: Path
):
    files = [facts for facts in shown.values() if "content" in facts]
    assert len(files) >= MIN_FILES
    assert sum(path.stat().st_size for path in big_image.raw) >= MIN_BYTES
    with mount_erofs(big_image.raw[0], tmp_path / "debian") as debian:
        for path in (*images.DELETED_FILES, images.FILE_TO_DIRECTORY, *images.NEW_MODE_FILES):
            assert (debian / path).is_file(), path
        for path in (
            *images.DELETED_DIRECTORIES,
            images.DIRECTORY_TO_FILE,
            images.DIRECTORY_TO_SYMLINK,
            images.OPAQUE,
            images.OPAQUE_INSIDE,
            images.NEW_MODE_DIRECTORY,
        ):
            assert stat.S_ISDIR((debian / path).lstat().st_mode), path
            assert any((debian / path).iterdir()), path
        for path in (images.SYMLINK_TO_DIRECTORY, images.SYMLINK_TO_FILE):
            assert (debian / path).is_symlink(), path


def test_every_entry_is_as_the_kernel_shows_it(
    shown: Mapping[bytes, Facts], kernel_view: Mapping[bytes, Facts]
):
    assert_same(shown, kernel_view)


def test_every_entry_is_as_gnu_tar_unpacks_it(
    big_image: ConvertedImage, shown: Mapping[bytes, Facts], tmp_path: Path
):
    with tar_overlay(tar_layers(big_image), tmp_path) as wanted:
        assert_same(shown, look(wanted), only=MADE_BY_TAR)


def test_changes_of_upper_layers(shown: Mapping[bytes, Facts]):
    def children(folder: str) -> set[bytes]:
        prefix = folder.encode() + b"/"
        return {path for path in shown if path.startswith(prefix)}

    for path in images.DELETED_FILES:
        assert path.encode() not in shown
    reborn, gone = images.DELETED_DIRECTORIES
    assert gone.encode() not in shown
    assert children(reborn) == {f"{reborn}/Reborn".encode()}
    assert children(images.OPAQUE) == {
        f"{images.OPAQUE}/{name}".encode() for name in ("de", "de/new", "only-this", "third")
    }
    assert shown[images.DIRECTORY_TO_FILE.encode()]["mode"] == "-rw-r--r--"
    assert shown[images.DIRECTORY_TO_SYMLINK.encode()]["target"] == b"doc/../doc"
    assert shown[images.NEW_MODE_DIRECTORY.encode()]["mode"] == "drwx--s--x"
    assert children(images.NEW_MODE_DIRECTORY)
    kept = ("kept", "kept-too", "opaque-in-third", "opaque-in-third/new", "same", "same/name")
    assert children("second") == {f"second/{name}".encode() for name in kept}
    assert not [path for path in shown if path.rsplit(b"/", 1)[-1].startswith(b".wh.")]


@pytest.mark.parametrize("number", range(3))
class TestLayer:
    """What tools that know nothing of lazyfs say of each layer's blob."""

    def test_decodes_to_the_image_that_the_configuration_names(
        self, big_image: ConvertedImage, number: int
    ):
        with big_image.raw[number].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        assert big_image.config["rootfs"]["diff_ids"][number] == f"sha256:{digest}"

    def test_fsck_has_no_complaint(self, big_image: ConvertedImage, number: int):
        done = subprocess.run(
            ["fsck.erofs", "-d3", "--extract", big_image.raw[number]],
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "<E>" not in said
        assert "<W>" not in said

    def test_veritysetup_accepts_image_and_tree(
        self, big_image: ConvertedImage, number: int, tmp_path: Path
    ):
        blob = big_image.blobs[number].read_bytes()
        parts = take_apart(blob, big_image.annotations(number))
        assert parts.verity is not None
        assert parts.root_digest is not None
        image = big_image.raw[number].read_bytes()
        padded = image + bytes(-len(image) % BLOCK)
        device = tmp_path / "layer.erofs"
        device.write_bytes(padded + blob[parts.verity.start : parts.verity.end])
        assert accepts(device, len(padded), parts.root_digest)
        with device.open("r+b") as file:
            file.seek(len(image) // 2)
            byte = file.read(1)[0]
            file.seek(len(image) // 2)
            file.write(bytes([byte ^ 1]))
        assert not accepts(device, len(padded), parts.root_digest)

    def test_frames_have_the_digests_of_the_table(self, big_image: ConvertedImage, number: int):
        blob = big_image.blobs[number].read_bytes()
        parts = take_apart(blob, big_image.annotations(number))
        assert parts.image_size == big_image.raw[number].stat().st_size
        assert parts.frames[0].start == 0
        for frame, digest in zip(parts.frames, parts.digests, strict=True):
            assert hashlib.sha512(blob[frame.start : frame.end]).digest() == digest
        assert parts.verity is not None
        assert parts.verity.end == len(blob)
