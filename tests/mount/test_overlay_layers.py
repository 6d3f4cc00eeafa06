"""Mounts of ours as lower directories of the kernel's overlayfs."""

import contextlib
import ctypes
import mmap
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.lazy_mounts import LazyMount, lazyfs, mounted
from tests.support.mounting import needs_fuse
from tests.support.overlay_oracle import mount, run
from tests.support.small_layers import SmallImage, small_image
from tests.support.trees import MADE_BY_TAR, assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

KEPT = MADE_BY_TAR - {"links"}
"""Without an index, overlayfs splits hard links, as it says itself."""

EVERYTHING = "redirect_dir=on,metacopy=on,index=on,xino=auto"


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> SmallImage:
    return small_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def layers(image: SmallImage, tmp_path_factory) -> Iterator[LazyMount]:
    target = tmp_path_factory.mktemp("layers") / "mnt"
    with mounted(image.name, target, "--layers", "--suid", "--cache-dir", image.cache) as lazy:
        yield lazy


@contextlib.contextmanager
def overlay(lazy: LazyMount, folder: Path, options: str = "") -> Iterator[Path]:
    """The kernel's overlayfs over the layers; ``folder`` keeps what is written."""
    lower = lazy.status()["lowerdir"]
    for name in ("upper", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    words = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    words += f",{options}" if options else ""
    with mount(folder / "merged", "-t", "overlay", "-o", words, "overlay") as merged:
        yield merged
        run("umount", merged)  # all of it, and at once: it comes back with the same upper directory
        run("mount", "-t", "tmpfs", "none", merged)


def test_the_command_prints_the_option_for_overlayfs(image: SmallImage, tmp_path: Path):
    target = tmp_path / "with:colon"
    words = ("--mkdir", "--layers", "--cache-dir", image.cache, image.name)
    printed = lazyfs("mount", *words, target).stdout.strip()
    try:
        assert sorted(entry.name for entry in target.iterdir()) == ["0", "1", "2"]
        with mount(tmp_path / "merged", "-t", "overlay", "-o", printed, "overlay") as merged:
            assert (merged / "data/changed").read_bytes() == b"the new one"
    finally:
        lazyfs("umount", target)


def test_layers_are_shown_as_overlayfs_wants_them(layers: LazyMount):
    whiteout = os.lstat(layers.path / "1/data/to-go")
    assert (whiteout.st_mode, whiteout.st_rdev) == (0o020000, 0)
    assert os.getxattr(layers.path / "1/hidden", "trusted.overlay.opaque") == b"y"
    devices = {os.lstat(layers.path / str(number)).st_dev for number in range(3)}
    assert devices == {os.lstat(layers.path).st_dev}


def test_overlayfs_our_tree_and_umoci_agree(image: SmallImage, layers: LazyMount, tmp_path: Path):
    run("umoci", "unpack", "--image", f"{image.layout}:{images.TAG}", tmp_path / "bundle")
    unpacked = look(tmp_path / "bundle/rootfs")
    with (
        overlay(layers, tmp_path) as merged,
        mounted(image.name, tmp_path / "mnt", "--cache-dir", image.cache) as lazy,
    ):
        seen = look(lazy.path)
        stacked = look(merged) | {b".": seen[b"."]}  # its root is the upper directory
    assert_same(seen, stacked)
    # umoci gives directories that it passes through a new time.
    assert_same(stacked, unpacked, only=MADE_BY_TAR - {"mtime_ns"})


@pytest.mark.parametrize("options", ["", EVERYTHING, "xino=on", "nfs_export=on,index=on"])
def test_changes_are_kept_over_a_new_mount(layers: LazyMount, tmp_path: Path, options: str):
    with overlay(layers, tmp_path, options) as merged:
        change(merged)
        changed = look(merged)
    with overlay(layers, tmp_path, options) as merged:
        assert_same(look(merged), changed, only=KEPT)


def change(root: Path) -> None:
    """Do to a tree what its users do, and check what it says of it."""
    with open(root / "data/changed", "ab") as file:
        file.write(b", appended")
    assert (root / "data/changed").read_bytes() == b"the new one, appended"
    (root / "data/third").unlink()
    assert not (root / "data/third").exists()
    (root / "data/third").write_bytes(b"again")
    (root / "data/large").rename(root / "tmp/large")
    assert not (root / "data/large").exists()
    assert (root / "tmp/large").read_bytes() == images.noise(3 << 20)
    os.truncate(root / "tmp/large", 1000)
    os.link(root / "data/marked", root / "data/marked-too")
    os.setxattr(root / "data/marked", "user.new", b"v")
    os.removexattr(root / "data/marked", "user.mark")
    assert sorted(os.listxattr(root / "data/marked-too")) == ["trusted.mark", "user.new"]
    os.chown(root / "capable/busybox", 7, 8)
    os.chmod(root / "capable/busybox", 0o700)
    assert (os.stat(root / "capable/busybox").st_uid, os.stat(root / "capable/busybox").st_gid) == (
        7,
        8,
    )
    os.utime(root / "bin/sh", ns=(1, 2), follow_symlinks=False)
    with pytest.raises(OSError, match="not empty"):
        (root / "hidden").rmdir()
    (root / "hidden/new").unlink()
    (root / "hidden").rmdir()
    (root / "hidden").mkdir()
    assert os.listdir(root / "hidden") == []
    names = set(os.listdir(root / "data"))
    for number in range(100):
        (root / f"data/new-{number}").touch()
    assert set(os.listdir(root / "data")) - names == {f"new-{number}" for number in range(100)}
    (root / "srv/link").symlink_to("../data/changed")
    assert (root / "srv/link").read_bytes().endswith(b"appended")


def test_directories_of_a_layer_can_be_renamed(layers: LazyMount, tmp_path: Path):
    with (
        overlay(layers, tmp_path / "without") as merged,
        pytest.raises(OSError, match="cross-device"),
    ):
        (merged / "moved").rename(merged / "elsewhere")
    with overlay(layers, tmp_path / "with", EVERYTHING) as merged:
        (merged / "moved").rename(merged / "elsewhere")
        assert (merged / "elsewhere/inside/file").read_bytes() == b"deep"
    with overlay(layers, tmp_path / "with", EVERYTHING) as merged:
        assert (merged / "elsewhere/inside/file").read_bytes() == b"deep"
        assert not (merged / "moved").exists()


def test_hard_links_stay_one_file_when_written_with_an_index(layers: LazyMount, tmp_path: Path):
    with overlay(layers, tmp_path, EVERYTHING) as merged:
        (merged / "data/first").write_bytes(b"new")
        assert (merged / "data/second").read_bytes() == b"new"
        assert (merged / "data/first").samefile(merged / "data/second")
        assert os.stat(merged / "data/first").st_nlink == 2


def test_inode_numbers_stay_when_a_file_is_copied_up(layers: LazyMount, tmp_path: Path):
    def numbers(merged: Path) -> dict[str, tuple[int, int]]:
        names = ("data", "data/first", "data/changed", "data/large", "gone/two", "bin/sh")
        found = {name: os.lstat(merged / name) for name in names}
        return {name: (status.st_dev, status.st_ino) for name, status in found.items()}

    with overlay(layers, tmp_path, EVERYTHING) as merged:
        before = numbers(merged)
        assert {device for device, _ in before.values()} == {os.stat(merged).st_dev}
        listed = {entry.name: entry.inode() for entry in os.scandir(merged / "data")}
        assert listed["changed"] == before["data/changed"][1]
        for name in ("data/first", "data/changed", "data/large"):
            os.chmod(merged / name, 0o600)
        assert numbers(merged) == before
        run("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches")
        assert numbers(merged) == before
    with overlay(layers, tmp_path, EVERYTHING) as merged:
        again = numbers(merged)
        assert {n: ino for n, (_, ino) in again.items()} == {n: i for n, (_, i) in before.items()}


def test_a_change_of_attributes_fetches_no_data(image: SmallImage, tmp_path: Path):
    words = ("--layers", "--cache-dir", tmp_path / "empty")
    with (
        mounted(image.name, tmp_path / "mnt", *words) as lazy,
        overlay(lazy, tmp_path, EVERYTHING) as merged,
    ):
        os.chown(merged / "data/large", 5, 5)
        assert lazy.status()["fuse"]["read_bytes"] == 0
        assert (merged / "data/large").read_bytes() == images.noise(3 << 20)


class Handle(ctypes.Structure):
    """``struct file_handle`` of fcntl.h."""

    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_char * 128))


def handle_of(path: Path) -> Handle:
    handle = Handle(size=128)
    number = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (os.fsencode(path), ctypes.byref(handle), ctypes.byref(number), 0)
    assert libc.name_to_handle_at(-100, *arguments) == 0, os.strerror(ctypes.get_errno())
    return handle


def seen(descriptor: int) -> tuple[int, int, object]:
    """What an open file or directory is; it is closed then."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            return status.st_ino, status.st_mode, os.listdir(descriptor)
        return status.st_ino, status.st_mode, os.pread(descriptor, status.st_size, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["data/first", "moved/inside", "data/large"])
def test_file_handles_outlive_what_the_kernel_remembers(
    image: SmallImage, layers: LazyMount, tmp_path: Path, name: str
):
    with (
        overlay(layers, tmp_path, "nfs_export=on,index=on,xino=on") as exported,
        mounted(image.name, tmp_path / "mnt", "--cache-dir", image.cache) as merged,
    ):
        for root in (exported, merged.path, layers.path / "0"):
            before, handle = seen(os.open(root / name, os.O_RDONLY)), handle_of(root / name)
            run("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches")
            top = os.open(root, os.O_RDONLY)
            libc = ctypes.CDLL(None, use_errno=True)
            found = libc.open_by_handle_at(top, ctypes.byref(handle), os.O_RDONLY)
            assert found >= 0, os.strerror(ctypes.get_errno())
            assert seen(found) == before
            os.close(top)


def test_mappings_programs_and_direct_reads(layers: LazyMount, tmp_path: Path):
    with overlay(layers, tmp_path, EVERYTHING) as merged:
        wanted = images.noise(3 << 20)
        direct = os.open(merged / "data/large", os.O_RDONLY | os.O_DIRECT)
        with open(merged / "data/large", "r+b") as file:  # copies it up
            shared = mmap.mmap(file.fileno(), 0)
            assert shared[:] == wanted
            shared[4096:4100] = b"MMAP"
            assert os.pread(file.fileno(), 4, 4096) == b"MMAP"
            os.pwrite(file.fileno(), b"PWRITE", 8192)
            assert shared[8192:8198] == b"PWRITE"
            shared.close()
        buffer = mmap.mmap(-1, 1 << 20)
        assert os.preadv(direct, [buffer], 1 << 20) == 1 << 20
        assert buffer[:] == wanted[1 << 20 : 2 << 20]
        os.close(direct)
        said = subprocess.check_output([merged / "bin/busybox", "echo", "runs"], timeout=60)
        assert said == b"runs\n"


def test_capabilities_and_set_ids_count(layers: LazyMount, tmp_path: Path):
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    asked = ("grep", "CapEff", "/proc/self/status")
    tmp_path.chmod(0o755)
    with overlay(layers, tmp_path) as merged:
        for folder in (merged, *merged.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o055)
        for name, wanted in (("capable", "2000"), ("bin", "0")):
            command: list[str | Path] = [
                *as_nobody,
                "--inh-caps=-all",
                merged / name / "busybox",
                *asked,
            ]
            said = subprocess.check_output(command, text=True, timeout=60)
            assert int(said.split()[1], 16) == int(wanted, 16), name
        command = [*as_nobody, merged / "set-id/cat", "/proc/self/status"]
        said = subprocess.check_output(command, text=True, timeout=60)
        assert "Uid:\t65534\t1234\t1234\t1234" in said
        assert "Gid:\t65534\t2345\t2345\t2345" in said
