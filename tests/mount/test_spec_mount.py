"""Images in the layout of the EROFS image specification in real mounts, against the kernel."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import spec_format as spec
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.images import noise, run, write
from tests.support.lazy_mounts import lazyfs, mounted
from tests.support.mounting import needs_fuse
from tests.support.overlay_oracle import decode, mount_erofs
from tests.support.registry_server import RegistryServer
from tests.support.spec_format import make_layer, standalone_index, with_tree, write_layout
from tests.support.trees import Facts, assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

ROLE = "org.erofs.role"
SEEN_EVERYWHERE = frozenset({"mode", "uid", "gid", "target", "content"})


@pytest.fixture(scope="module", params=["", "--file-aligned"])
def spec_image(request, big_image: ConvertedImage, registry: RegistryServer, tmp_path_factory):
    """The large image once more, in this layout."""
    words = [request.param] if request.param else ["--chunk-size=1MiB"]
    return push_and_convert(
        big_image.layout,
        "tar",
        f"spec{len(request.param)}",
        registry,
        tmp_path_factory.mktemp("raw"),
        "--layout=erofs-spec",
        *words,
    )


def test_the_tree_is_as_the_kernel_shows_it(
    spec_image: ConvertedImage, kernel_view: Mapping[bytes, Facts], tmp_path: Path
):
    with mounted(spec_image.name, tmp_path) as mount:
        assert_same(look(mount.path), kernel_view)
        layers = mount.status()["layers"]
        assert [layer["lazy"] for layer in layers] == [True, True, True]
        assert all("dm-verity (sha256)" in layer["verity"] for layer in layers)


def test_little_is_fetched_for_little(spec_image: ConvertedImage, tmp_path: Path):
    with mounted(spec_image.name, tmp_path) as mount:
        os.listdir(mount.path)
        fetched = mount.status()["totals"]["fetched_bytes"]
    assert fetched < spec_image.blob_bytes / 50


def test_blobs_hold_image_and_tree(spec_image: ConvertedImage):
    for number, path in enumerate(spec_image.raw):
        notes = spec_image.annotations(number)
        offset = notes["org.erofs.dmverity.hash_offset"]
        root = notes["org.erofs.dmverity.root_digest"].removeprefix("sha256:")
        run("veritysetup", "verify", f"--hash-offset={offset}", path, path, root)
        run("fsck.erofs", path)


def test_other_tools_take_the_image(spec_image: ConvertedImage, tmp_path: Path):
    name = f"docker://{spec_image.name}"
    words = ("skopeo", "inspect", "--tls-verify=false", "--raw", name)
    raw = subprocess.run(words, capture_output=True, check=True).stdout
    layers = json.loads(raw)["layers"]
    assert {layer["mediaType"] for layer in layers} == {spec.ZSTD}
    run("skopeo", "copy", "--src-tls-verify=false", name, f"oci:{tmp_path}/copy:x")
    again = tmp_path / "copy/blobs/sha256" / spec.digest_of(raw).removeprefix("sha256:")
    assert again.read_bytes() == raw
    lazyfs("inspect", f"oci:{tmp_path}/copy:x")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some files."""
    folder = tmp_path / "files"
    write(folder / "large", noise(3 << 20))
    write(folder / "text", b"again and again\n" * 9000)
    for number in range(50):
        write(folder / f"many/{number}", b"%d" % number * 500)
    return folder


def test_a_device_blob_of_its_own(tree: Path, tmp_path: Path):
    """As the kernel mounts it, with the device beside the image."""
    meta, device = tmp_path / "meta", tmp_path / "device"
    run("mkfs.erofs", "--chunksize=4096", "--blobdev", device, meta, tree)
    whole, bare = make_layer(device.read_bytes(), (0, 1 << 20), compressed=False)
    data, notes = with_tree(tmp_path, meta.read_bytes())
    top, _ = make_layer(data, (0,), annotations=notes)
    layers = [
        spec.Layer(bare.blob, "application/octet-stream", {ROLE: "device"}),
        standalone_index(bare, whole),
        top,
    ]
    name = write_layout(tmp_path / "layout", layers)
    with mounted(name, tmp_path / "m") as mount:
        assert_same(look(mount.path), look(tree), SEEN_EVERYWHERE)
        assert [layer["lazy"] for layer in mount.status()["layers"]] == [True, True]


def test_data_only_layers_as_overlayfs_has_them(tree: Path, tmp_path: Path):
    """A layer that shows files of another one under other names."""
    meta = tmp_path / "meta-files"
    for path, target in (("big", "/large"), ("dir/words", "/text"), ("dir/seven", "/many/7")):
        write(meta / path, b"")
        os.truncate(meta / path, (tree / target[1:]).stat().st_size)
        os.setxattr(meta / path, "trusted.overlay.metacopy", b"")
        os.setxattr(meta / path, "trusted.overlay.redirect", target.encode())
    write(meta / "own", b"own data")
    images = [tmp_path / "data.erofs", tmp_path / "meta.erofs"]
    run("mkfs.erofs", "--chunksize=4096", images[0], tree)
    run("mkfs.erofs", "--chunksize=4096", images[1], meta)
    data, _ = make_layer(images[0].read_bytes(), (0, 70_000), annotations={ROLE: "overlay-data"})
    top, _ = make_layer(images[1].read_bytes(), (0,))
    name = write_layout(tmp_path / "layout", [data, top])
    lower, upper, merged = (tmp_path / name for name in ("lower", "upper", "merged"))
    merged.mkdir()
    with (
        mounted(name, tmp_path / "m") as mount,
        mount_erofs(images[0], lower),
        mount_erofs(images[1], upper),
    ):
        options = f"ro,metacopy=on,redirect_dir=on,lowerdir={upper}::{lower}"
        run("mount", "-t", "overlay", "-o", options, "overlay", merged)
        try:
            wanted = look(merged)
        finally:
            run("umount", merged)
        assert wanted[b"big"]["content"] == look(tree)[b"large"]["content"]
        assert_same(look(mount.path), wanted, SEEN_EVERYWHERE)


def test_a_whole_stream_is_the_same_image(spec_image: ConvertedImage, tmp_path: Path):
    """What any zstd decoder makes of a blob is what the kernel mounts."""
    image = decode(spec_image.blobs[2], tmp_path / "image")
    with mount_erofs(image, tmp_path / "kernel") as target:
        assert os.listdir(target)
