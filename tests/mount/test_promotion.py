"""``lazyfs mount --driver kernel --promote``: in the end the mount needs no daemon."""

import errno
import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lazyfs.mount import roles
from lazyfs.mount.mountinfo import current_mounts, top_mount
from lazyfs.mount.supervision import LOCAL
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.images import noise
from tests.support.lazy_mounts import COMMAND_WITHIN_S, MAX_ASKING, lazyfs, mounted
from tests.support.mounting import folder_of, kill, needs_fuse, process_of, wait_for_end
from tests.support.registry_server import RegistryServer
from tests.support.survival import reading
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

FILES = {f"d{number % 5}/{number:03}": noise(400_000, b"p%d" % number) for number in range(40)}
LAYERS = [dict(list(FILES.items())[:25]), dict(list(FILES.items())[25:])]
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
PROMOTE = ("--driver", "kernel", "--promote")


@pytest.fixture(scope="module")
def image(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "promote-layout"
    write_layout(layout, "tar", LAYERS)
    options = ("--chunk-size", "128KiB")
    return push_and_convert(layout, "tar", "promote", registry, work_folder / "raw-p", *options)


def state_of(directory: Path) -> dict:
    [document] = json.loads(lazyfs("status", "--json", directory).stdout)
    assert isinstance(document, dict)
    return document


def wait_until_local(directory: Path) -> None:
    for _ in range(MAX_ASKING):
        if state_of(directory)["state"] == "local":
            return
    raise AssertionError((folder_of(directory) / "log").read_text())


def loops_below(text: str) -> list[str]:
    """Loop devices whose backing file has a text in its name."""
    listed = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in listed.stdout.splitlines() if text in line]


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed"])
def test_a_mount_outlives_daemon_and_registry(
    image: ConvertedImage, tmp_path: Path, *, killed: bool
):
    directory, cache = tmp_path / "mnt", tmp_path / "cache"
    with (
        mounted(image.name, directory, *PROMOTE, "--cache-dir", cache) as mount,
        (directory / "d1/001").open("rb") as open_before,
        reading(directory, DIGESTS, tmp_path, processes=2) as readers,
    ):
        if killed and (daemon := process_of(mount.folder, roles.DAEMON)):
            # If it is not there any more, it was quicker than we.
            kill(daemon, signal.SIGKILL)
        wait_until_local(directory)
        for role in (roles.DAEMON, roles.SUPERVISOR):
            left = process_of(mount.folder, role)
            assert left is None or wait_for_end(left)
        assert readers.running()
        assert readers.finish()
        assert open_before.read() == FILES["d1/001"]
        open_before.close()
        assert {
            name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in FILES
        } == DIGESTS
        assert len(loops_below(os.fspath(cache))) == len(LAYERS)
        with (directory / "d1/001").open("rb"):
            busy = lazyfs("umount", directory, check=False)
            assert "busy: held by" in busy.stderr
        assert "local" in lazyfs("status", directory).stdout
        lazyfs("umount", directory)
        top = top_mount(os.fspath(directory), current_mounts())
        assert top is None
        assert not mount.folder.exists()
    for _ in range(10 * MAX_ASKING):  # the kernel lets go of them some time after the mount
        if not loops_below(os.fspath(cache)):
            return
    raise AssertionError("loop devices are left")


def test_what_cannot_be_fetched_stays_lazy(image: ConvertedImage, tmp_path: Path):
    directory, cache = tmp_path / "mnt", tmp_path / "cache"
    blob = image.blobs[0]
    whole = blob.read_bytes()
    at = whole.find(FILES["d0/000"][1000:1064])
    assert at > 0
    broken = bytearray(whole)
    broken[at] ^= 1
    blob.write_bytes(broken)
    try:
        with mounted(image.name, directory, *PROMOTE, "--cache-dir", cache) as mount:
            seen = (mount.status()["promotion"] for _ in range(MAX_ASKING))
            promotion = next(found for found in seen if found["problem"] and found["local"])
            assert promotion["local"] == 1
            assert "0.erofs" in promotion["problem"]
            assert mount.status()["state"] == "mounted"
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (directory / "d0/000").read_bytes()
            assert (directory / "d4/034").read_bytes() == FILES["d4/034"]
            busy = subprocess.run(["umount", directory], timeout=COMMAND_WITHIN_S, check=False)
            assert busy.returncode == 0
    finally:
        blob.write_bytes(whole)


def test_it_is_for_the_kernel_driver_only(image: ConvertedImage, tmp_path: Path):
    done = lazyfs("mount", "--mkdir", "--promote", image.name, tmp_path / "mnt", check=False)
    assert done.returncode == 1
    assert "--promote goes with --driver kernel" in done.stderr


def test_its_exit_status_is_of_its_own():
    assert LOCAL not in (0, 1, 75)
