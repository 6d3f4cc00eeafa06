"""Layers as files of a store, mounted by the kernel's EROFS as containerd does."""

import contextlib
import errno
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.images import noise
from tests.support.kernel_mounts import Way, by_loop, file_backed, stacked
from tests.support.lazy_mounts import forget_pages, lazyfs, stored
from tests.support.mounting import is_mounted, needs_fuse
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.survival import kill_daemon, next_daemon, pause, reading
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

KILLS = 6

LOWER = {f"d{number % 7}/{number:03}": noise(90_000, b"%d" % number) for number in range(60)}
UPPER = {
    "big": noise(6 << 20, b"big"),
    "d1/001": noise(200_000, b"new"),
    "d2/.wh.002": b"",
    "empty": b"",
}
FILES = {name: data for name, data in {**LOWER, **UPPER}.items() if ".wh." not in name}
del FILES["d2/002"]

WAYS = pytest.mark.parametrize("way", [file_backed, by_loop], ids=["file", "loop"])


@pytest.fixture(scope="module")
def image(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "store-layout"
    write_layout(layout, "tar", [LOWER, UPPER])
    options = ("--chunk-size", "128KiB")
    return push_and_convert(layout, "tar", "store", registry, work_folder / "raw-st", *options)


def diff_ids(image: ConvertedImage) -> list[str]:
    found = image.config["rootfs"]["diff_ids"]
    assert isinstance(found, list)
    return found


def place(store: Path, diff_id: str) -> Path:
    """Where containerd looks for a layer."""
    algorithm, _, name = diff_id.partition(":")
    return store / algorithm / name[:2] / f"{name}.erofs"


def places(store: Path, image: ConvertedImage) -> list[Path]:
    return [place(store, diff_id) for diff_id in diff_ids(image)]


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def contents(root: Path) -> dict[str, str]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {
        os.fspath(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def test_a_file_is_the_layer_as_its_diff_id_says(image: ConvertedImage, tmp_path: Path):
    with stored(tmp_path / "store", [image.name], "--cache-dir", tmp_path / "cache") as store:
        for path, raw, diff_id in zip(
            places(store.path, image), image.raw, diff_ids(image), strict=True
        ):
            assert path.stat().st_size == raw.stat().st_size
            assert path.stat().st_mode & 0o777 == 0o444
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            assert f"sha256:{found}" == diff_id
        files = [path for path in store.path.rglob("*") if path.is_file()]
        assert sorted(files) == sorted(places(store.path, image))


@WAYS
def test_daemons_die_under_the_kernel(image: ConvertedImage, tmp_path: Path, way: Way):
    when = random.Random(3)
    with (
        stored(tmp_path / "store", [image.name], "--cache-dir", tmp_path / "cache") as store,
        stacked(places(store.path, image), tmp_path / "tree", way) as tree,
        reading(tree, digests(FILES), tmp_path, processes=3) as readers,
    ):
        for _ in range(KILLS):
            pause(when.random() * 0.3)
            forget_pages([tree / name for name in FILES])
            kill_daemon(store.folder)
            next_daemon(store.path, store.folder)
            assert readers.running()
        assert readers.finish() > KILLS
        assert contents(tree) == digests(FILES)
        assert store.status()["survival"]["restarts"] == KILLS


@WAYS
def test_wrong_bytes_are_an_error_and_no_bytes(
    registry: RegistryServer, image: ConvertedImage, tmp_path: Path, way: Way
):
    blob, raw = image.blobs[1], image.raw[1]
    whole = blob.read_bytes()
    # In the middle of the big file's data, which do not compress: they stand in the blob as such.
    at = whole.find(UPPER["big"][3 << 20 : (3 << 20) + 64])
    assert at > 0
    broken = bytearray(whole)
    broken[at] ^= 1
    blob.write_bytes(broken)
    try:
        with (
            stored(tmp_path / "store", [image.name], "--cache-dir", tmp_path / "cache") as store,
            stacked(places(store.path, image), tmp_path / "tree", way) as tree,
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (tree / "big").read_bytes()
            with (tree / "big").open("rb", buffering=0) as file:
                assert os.pread(file.fileno(), 1 << 20, 0) == UPPER["big"][: 1 << 20]
            assert (tree / "d1/001").read_bytes() == UPPER["d1/001"]
            assert (tree / "d3/003").read_bytes() == LOWER["d3/003"]
            assert store.status()["totals"]["verification_failures"]
            blob.write_bytes(whole)
            # The kernel of a loop device may have kept the error page, the store has not.
            assert place(store.path, diff_ids(image)[1]).read_bytes() == raw.read_bytes()
    finally:
        blob.write_bytes(whole)


def test_a_store_comes_back_without_its_registry(
    image: ConvertedImage, work_folder: Path, tmp_path: Path
):
    cache = ("--cache-dir", tmp_path / "cache")
    with running_registry(work_folder / "registry") as passing:
        name = image.name_at(passing.host)
        with stored(tmp_path / "store", [name], *cache) as store:
            whole = [path.read_bytes() for path in places(store.path, image)]
    with stored(tmp_path / "store", [], *cache) as store:
        assert [path.read_bytes() for path in places(store.path, image)] == whole
        assert store.totals()["requests"] == 0


def test_images_come_while_it_is_mounted(
    registry: RegistryServer, image: ConvertedImage, tmp_path: Path
):
    tar = json.loads((image.layout / "index.json").read_text())["manifests"][0]["digest"]
    manifest = json.loads(registry.blob_path(tar).read_bytes())
    config = json.loads(registry.blob_path(manifest["config"]["digest"]).read_bytes())
    tar_ids = config["rootfs"]["diff_ids"]
    tar_name = image.name.replace(":lazy", ":tar")
    with stored(tmp_path / "store", [], "--cache-dir", tmp_path / "cache") as store:
        first = places(store.path, image)[0]
        assert not first.exists()
        at = ("--at", store.path)
        done = lazyfs("store", *at, "add", tar_name, check=False)
        assert done.returncode == 1
        assert "convert the image first" in done.stderr
        lazyfs("store", *at, "add", image.name)
        assert first.read_bytes() == image.raw[0].read_bytes()
        # For who pulls the tar image: the same layers by the other diff IDs.
        assert not place(store.path, tar_ids[1]).exists()
        lazyfs("store", *at, "--named-like", tar_name, "add", image.name)
        assert place(store.path, tar_ids[1]).read_bytes() == image.raw[1].read_bytes()
        assert lazyfs("store", *at, "remove", image.name).returncode == 0
        assert lazyfs("store", *at, "remove", image.name, check=False).returncode == 1
        assert first.exists()  # a snapshot may refer to it: until the store is mounted anew


def test_a_sick_image_hurts_no_other(
    registry: RegistryServer, image: ConvertedImage, tmp_path: Path
):
    layout = tmp_path / "other"
    write_layout(layout, "tar", [{"other": b"other"}])
    lazyfs("convert", "--quiet", "--no-cache", f"oci:{layout}:tar", f"oci:{layout}:lazy")
    names = [f"oci:{layout}:lazy", image.name]
    with stored(tmp_path / "store", names, "--cache-dir", tmp_path / "cache") as store:
        [other] = set(store.path.rglob("*.erofs")) - set(places(store.path, image))
        size = other.stat().st_size
    for blob in (layout / "blobs/sha256").iterdir():
        blob.unlink()
    (tmp_path / "cache/documents").rename(tmp_path / "gone")
    with stored(tmp_path / "store", [], "--cache-dir", tmp_path / "cache") as store:
        assert places(store.path, image)[0].read_bytes() == image.raw[0].read_bytes()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            other.stat()
        files = store.status()["store"]["files"]
        [sick] = [file for file in files if file["problem"]]
        assert sick["diff_id"].endswith(other.stem)
    assert size


def test_a_daemon_that_is_gone_for_good_keeps_nobody(image: ConvertedImage, tmp_path: Path):
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(
            stored(tmp_path / "store", [image.name], "--cache-dir", tmp_path / "cache")
        )
        tree = stack.enter_context(
            stacked(places(store.path, image), tmp_path / "tree", file_backed)
        )
        assert (tree / "d3/003").read_bytes() == LOWER["d3/003"]
        busy = lazyfs("umount", store.path, check=False)
        assert busy.returncode == 1
        assert f"a mount on {tmp_path}/tree/0" in busy.stderr
        store.kill()
        with pytest.raises(OSError) as failure:
            (tree / "big").read_bytes()
        # Of data it is EIO; of an inode that EROFS had not read yet, what FUSE gives it.
        assert failure.value.errno in {errno.EIO, errno.ENOTCONN}
        assert lazyfs("status", store.path).stdout.count("dead")
        # In any order: nothing waits for a daemon that will not come.
        lazyfs("umount", store.path)
        assert not is_mounted(store.path)
        assert (tree / "d3/003").stat().st_size == len(LOWER["d3/003"])


@pytest.fixture
def loops() -> Iterator[None]:
    """No loop device is left on a store."""
    yield
    listed = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert "/store/sha256/" not in listed.stdout


@pytest.mark.usefixtures("loops")
def test_a_loop_device_is_named_as_holder(image: ConvertedImage, tmp_path: Path):
    with stored(tmp_path / "store", [image.name], "--cache-dir", tmp_path / "cache") as store:
        with stacked(places(store.path, image), tmp_path / "tree", by_loop):
            busy = lazyfs("umount", store.path, check=False)
            assert "the loop device loop" in busy.stderr
        lazyfs("umount", store.path)
