"""``lazyfs mount --driver kernel``: the kernel's EROFS and overlayfs on lazy layer files."""

import errno
import hashlib
import json
import os
import random
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lazyfs.mount import roles
from lazyfs.mount.mountinfo import current_mounts, top_mount
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.erofs_files import golden_devices, sealed
from tests.support.images import noise
from tests.support.lazy_mounts import (
    COMMAND_WITHIN_S,
    MAX_ASKING,
    LazyMount,
    forget_pages,
    lazyfs,
    mounted,
)
from tests.support.mounting import needs_fuse, process_of
from tests.support.registry_server import RegistryServer
from tests.support.served import served
from tests.support.survival import kill_daemon, pause, reading
from tests.support.tiny_image import write_layout
from tests.support.trees import Facts, assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

KILLS = 8
BLOCK_BITS_AT = 1024 + 12
"""``blkszbits`` of the superblock."""

LOWER = {f"d{number % 7}/{number:03}": noise(90_000, b"%d" % number) for number in range(60)}
UPPER = {"big": noise(6 << 20, b"big"), "d1/001": noise(200_000, b"new"), "d2/.wh.002": b""}
FILES = {name: data for name, data in {**LOWER, **UPPER}.items() if ".wh." not in name}
del FILES["d2/002"]
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}

SMALL = {f"d{at // 24}/{at:03}": noise(8_000, b"s%d" % at) for at in range(24 * 24)}
"""Folders of 192 KiB, which is what a start reads of an image of many small files."""

KERNEL = ("--driver", "kernel")


@pytest.fixture(scope="module")
def image(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "kernel-layout"
    write_layout(layout, "tar", [LOWER, UPPER])
    options = ("--chunk-size", "128KiB")
    return push_and_convert(layout, "tar", "kernel", registry, work_folder / "raw-k", *options)


@pytest.fixture(scope="module")
def single(work_folder: Path) -> str:
    """An image of one layer, with a whiteout in it."""
    layout = work_folder / "single-layout"
    write_layout(layout, "tar", [{"file": b"content", ".wh.gone": b""}])
    lazyfs("convert", "--quiet", "--no-cache", f"oci:{layout}:tar", f"oci:{layout}:lazy")
    return f"oci:{layout}:lazy"


@pytest.fixture(scope="module")
def folders(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    """An image of one layer: many small files, folder by folder."""
    layout = work_folder / "folders-layout"
    write_layout(layout, "tar", [SMALL])
    options = ("--chunk-size", "64KiB")
    return push_and_convert(layout, "tar", "folders", registry, work_folder / "raw-f", *options)


def wait_for_other(mount: LazyMount, daemon: int) -> None:
    """Return once another daemon serves the mount."""
    for _ in range(MAX_ASKING):
        document = mount.status()
        if document["state"] == "mounted" and document["pid"] != daemon:
            return
    raise AssertionError(mount.log())


def kernel_type(directory: Path) -> str | None:
    top = top_mount(os.fspath(directory), current_mounts())
    return None if top is None else top.file_system_type


def test_the_tree_is_that_of_decoded_layers(
    big_image: ConvertedImage, kernel_view: Mapping[bytes, Facts], tmp_path: Path
):
    options = (*KERNEL, "--cache-dir", tmp_path / "cache")
    with mounted(big_image.name, tmp_path / "mnt", *options) as mount:
        assert kernel_type(mount.path) == "overlay"
        assert_same(look(mount.path), kernel_view)


def test_a_single_layer_is_shown_as_it_is(single: str, tmp_path: Path):
    options = ("--driver", "auto", "--cache-dir", tmp_path / "cache")
    with mounted(single, tmp_path / "mnt", *options) as mount:
        assert kernel_type(mount.path) == "erofs"
        assert (mount.path / "file").read_bytes() == b"content"
        assert (mount.path / "gone").is_char_device()
        assert mount.status()["driver"] == "kernel"
        assert "driver    kernel: root" in lazyfs("status", mount.path).stdout


def test_devices_of_an_image_come_along(tmp_path: Path):
    for file, data in zip(("meta", "blob"), golden_devices("device"), strict=True):
        (tmp_path / file).write_bytes(data)
    name = f"erofs:{tmp_path}/meta,device={tmp_path}/blob"
    with (
        mounted(name, tmp_path / "kernel", *KERNEL) as kernel,
        mounted(name, tmp_path / "fuse") as fuse,
    ):
        assert_same(look(kernel.path), look(fuse.path))


def test_readers_notice_nothing_of_dying_daemons(image: ConvertedImage, tmp_path: Path):
    when = random.Random(4)
    options = (*KERNEL, "--cache-dir", tmp_path / "cache")
    with (
        mounted(image.name, tmp_path / "mnt", *options) as mount,
        reading(mount.path, DIGESTS, tmp_path, processes=4) as readers,
    ):
        for kill in range(KILLS):
            pause(when.random() * 0.4)
            forget_pages([mount.path / name for name in FILES])
            if kill % 4 == 3:
                lazyfs("restart", mount.path)
            else:
                wait_for_other(mount, kill_daemon(mount.folder))
            assert readers.running()
        assert readers.finish() > KILLS
        document = mount.status()
        assert document["survival"]["restarts"] == KILLS
        assert (document["state"], document["driver"]) == ("mounted", "kernel")


def is_past_cache(mount: LazyMount) -> bool:
    """Whether the kernel reads the data of the one layer past the page cache of our file."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    [fields] = [line.split() for line in lines if f" {mount.path} " in line]
    return "directio" in fields[-1].split(",")


def test_of_a_layer_with_gaps_only_what_is_read_is_fetched(folders: ConvertedImage, tmp_path: Path):
    options = (*KERNEL, "--prefetch", "none", "--cache-dir", tmp_path / "cache")
    with mounted(folders.name, tmp_path / "mnt", *options) as mount:
        assert is_past_cache(mount)
        before = mount.status()["totals"]["fetched_bytes"]
        for number in range(10 * 24, 11 * 24):
            name = f"d10/{number:03}"
            assert (mount.path / name).read_bytes() == SMALL[name]
        # The chunks of the folder, those of its metadata and what proves them.
        assert mount.status()["totals"]["fetched_bytes"] - before < 384 << 10
        for name, data in SMALL.items():
            assert (mount.path / name).read_bytes() == data
    with mounted(folders.name, tmp_path / "mnt", *options) as mount:  # now all of it is here
        assert not is_past_cache(mount)
        assert (mount.path / "d0/000").read_bytes() == SMALL["d0/000"]


def test_whoever_unmounts_it_nothing_is_left(image: ConvertedImage, tmp_path: Path):
    options = (*KERNEL, "--cache-dir", tmp_path / "cache")
    for command in (["umount"], [sys.executable, "-m", "lazyfs", "umount"]):
        with mounted(image.name, tmp_path / "mnt", *options) as mount:
            daemon = process_of(mount.folder, roles.DAEMON)
            with (mount.path / "big").open("rb"):
                busy = lazyfs("umount", mount.path, check=False)
                assert "busy: held by" in busy.stderr
            ended = os.pidfd_open(daemon or -1)
            subprocess.run([*command, mount.path], check=True, timeout=COMMAND_WITHIN_S)
            wait_for(ended)
            os.close(ended)
            assert not [entry for entry in current_mounts() if str(tmp_path) in str(entry)]


def wait_for(process: int) -> None:
    watch = select.poll()
    watch.register(process, select.POLLIN)
    assert watch.poll(COMMAND_WITHIN_S * 1000)


def test_a_detached_mount_serves_its_users_to_the_end(image: ConvertedImage, tmp_path: Path):
    options = (*KERNEL, "--cache-dir", tmp_path / "cache")
    with (
        mounted(image.name, tmp_path / "mnt", *options) as mount,
        (mount.path / "big").open("rb") as file,
    ):
        lazyfs("umount", "--lazy", mount.path)
        assert kernel_type(mount.path) is None
        assert mount.status()["state"] == "detached"
        assert file.read() == FILES["big"]


def test_without_any_daemon_nobody_hangs(image: ConvertedImage, tmp_path: Path):
    options = (*KERNEL, "--cache-dir", tmp_path / "cache")
    with mounted(image.name, tmp_path / "mnt", *options) as mount:
        assert (mount.path / "d3/003").read_bytes() == FILES["d3/003"]
        mount.kill()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (mount.path / "big").read_bytes()
        assert "the daemon has died" in lazyfs("status", mount.path).stdout
        lazyfs("umount", mount.path)
        assert kernel_type(mount.path) is None
        assert not mount.folder.exists()


def test_it_can_be_written_to_by_an_overlay(image: ConvertedImage, tmp_path: Path):
    options = (*KERNEL, "--rw", "--cache-dir", tmp_path / "cache")
    with mounted(image.name, tmp_path / "mnt", *options) as mount:
        with (mount.path / "big").open("ab") as file:
            file.write(b"more")
        assert (mount.path / "big").read_bytes() == FILES["big"] + b"more"
        assert mount.status()["driver"] == "kernel"
        findings = json.loads(lazyfs("doctor", "--json", check=False).stdout)
        here = [finding for finding in findings if finding["about"] == os.fspath(mount.path)]
        assert here
        assert all(finding["level"] == "ok" for finding in here)


def test_permissions_are_those_asked_for(image: ConvertedImage, tmp_path: Path):
    def flags(*options: str | Path) -> set[str]:
        with mounted(image.name, tmp_path / "mnt", *KERNEL, *options) as mount:
            lines = Path("/proc/self/mountinfo").read_text().splitlines()
            [fields] = [line.split() for line in lines if f" {mount.path} " in line]
            return set(fields[5].split(","))

    cache = ("--cache-dir", tmp_path / "cache")
    assert {"ro", "nosuid", "nodev"} <= flags(*cache)
    assert not {"nosuid", "nodev"} & flags(*cache, "--suid", "--dev")


def test_in_the_foreground(image: ConvertedImage, tmp_path: Path):
    with served(image.name, tmp_path / "mnt", *KERNEL, "--cache-dir", tmp_path / "cache") as mount:
        assert kernel_type(mount.path) == "overlay"
        assert (mount.path / "d3/003").read_bytes() == FILES["d3/003"]
    assert kernel_type(tmp_path / "mnt") is None


def test_what_the_kernel_refuses_is_said_and_auto_serves_it_by_fuse(tmp_path: Path):
    data = bytearray(golden_devices("plain-2k")[0].ljust(1 << 16, b"\0"))
    data[BLOCK_BITS_AT] = 16  # larger than a page: for the kernel too large, for us not
    image = tmp_path / "image"
    image.write_bytes(sealed(data))
    words = ("mount", "--mkdir", f"erofs:{image}", tmp_path / "mnt")
    refused = lazyfs(*words, *KERNEL, check=False)
    assert refused.returncode == 1
    assert "the kernel does not mount the layers: erofs" in refused.stderr
    assert kernel_type(tmp_path / "mnt") is None
    with mounted(f"erofs:{image}", tmp_path / "mnt", "--driver", "auto") as mount:
        document = mount.status()
        assert document["driver"] == "fuse"
        assert "the kernel does not mount" in document["driver_why"]
        assert kernel_type(mount.path) == "fuse.lazyfs"
