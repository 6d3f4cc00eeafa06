"""Daemons are killed while processes read: nobody notices anything but a pause."""

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from lazyfs.mount import roles
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.lazy_mounts import mounted
from tests.support.mounting import COMMAND_WITHIN_S, needs_fuse, process_of
from tests.support.mounting import mounted as memory_mounted
from tests.support.registry_server import RegistryServer
from tests.support.survival import (
    children_of,
    kill_daemon,
    next_daemon,
    open_files,
    pause,
    reading,
)
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

READERS = 6
KILLS = 12
KILLS_IN_A_ROW = 50
TAR_KILLS = 4


def contents(seed: int) -> dict[str, bytes]:
    """Files of all sizes, a few dozen of them, in folders."""
    random_bytes = random.Random(seed)
    files = {
        f"d{number % 7}/file-{number:03}": random_bytes.randbytes(random_bytes.randrange(300_000))
        for number in range(90)
    }
    return {**files, "big": random_bytes.randbytes(12 << 20), "empty": b""}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return contents(5)


@pytest.fixture(scope="module")
def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


@pytest.fixture(scope="module")
def image(files: dict[str, bytes], registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "survival"
    upper = {name: files[name] for name in sorted(files)[::3]}
    lower = {name: data for name, data in files.items() if name not in upper}
    write_layout(layout, "tar", [lower, upper])
    options = ("--chunk-size", "64KiB")
    return push_and_convert(layout, "tar", "survival", registry, work_folder / "raw-s", *options)


def test_readers_of_many_processes_notice_nothing(
    image: ConvertedImage, digests: dict[str, str], tmp_path: Path
):
    when = random.Random(1)
    cache = ("--cache-dir", tmp_path / "cache")
    with (
        mounted(image.name, tmp_path / "mnt", *cache) as mount,
        reading(mount.path, digests, tmp_path, processes=READERS) as readers,
    ):
        for _ in range(KILLS):
            pause(when.random() * 0.7)
            kill_daemon(mount.folder)
            next_daemon(mount.path, mount.folder)
            assert readers.running()
        assert readers.finish() > READERS
        document = mount.status()
        assert document["survival"]["restarts"] == KILLS
        assert document["state"] == "mounted"


def test_an_archive_of_the_tree_is_the_same(image: ConvertedImage, tmp_path: Path):
    when = random.Random(2)

    def archive(tree: Path, *, kills: int, folder: Path | None = None) -> str:
        command: list[str | Path] = ["tar", "-C", tree, "--sort=name", "-cf", "-", "."]
        digest = hashlib.sha256()
        received = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as tar:
            assert tar.stdout is not None
            while data := tar.stdout.read(1 << 16):
                digest.update(data)
                received += 1
                if kills and folder is not None and received % 20 == 0:
                    kills -= 1
                    next_daemon(tree, folder)
                    pause(when.random() * 0.05)
                    kill_daemon(folder)
        assert tar.returncode == 0
        assert not kills
        return digest.hexdigest()

    with mounted(image.name, tmp_path / "one", "--cache-dir", tmp_path / "cache1") as mount:
        undisturbed = archive(mount.path, kills=0)
    with mounted(image.name, tmp_path / "two", "--cache-dir", tmp_path / "cache2") as mount:
        assert archive(mount.path, kills=TAR_KILLS, folder=mount.folder) == undisturbed


def test_requests_in_flight_are_answered_by_the_next_daemon(tmp_path):
    with memory_mounted("basic", tmp_path) as mount:
        mount.switch("wait", on=True)
        readers = [
            subprocess.Popen(["cat", mount.path / f"wait{number}"], stdout=subprocess.PIPE)
            for number in (0, 1, 2)
        ]
        for number in (1, 2):
            mount.switch("wait" + "." * number, on=True)
        mount.wait_for_request()
        kill_daemon(mount.folder)
        next_daemon(mount.path, mount.folder)
        mount.wait_for_request()  # it came again
        kill_daemon(mount.folder)
        for number in (0, 1, 2):
            mount.switch("wait" + "." * number, on=False)
        said = [reader.communicate(timeout=COMMAND_WITHIN_S)[0] for reader in readers]
        assert said == [b"wait:wait", b"wait:wait.", b"wait:wait.."]
        assert [reader.returncode for reader in readers] == [0, 0, 0]


def test_who_waits_for_a_daemon_can_be_killed(tmp_path):
    with memory_mounted("basic", tmp_path) as mount:
        mount.switch("gone", on=True)  # the next daemons cannot open the image
        kill_daemon(mount.folder)
        reader = subprocess.Popen(["cat", mount.path / "large"], stdout=subprocess.DEVNULL)
        reader.kill()
        assert reader.wait(COMMAND_WITHIN_S) != 0
        mount.switch("gone", on=False)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"


@pytest.mark.slow
def test_fifty_kills_in_a_row(tmp_path):
    with memory_mounted("basic", tmp_path) as mount:
        supervisor = process_of(mount.folder, roles.SUPERVISOR)
        assert supervisor is not None
        at_first = None
        daemon = mount.pid
        with open(mount.path / "large", "rb", buffering=0) as file:
            for number in range(KILLS_IN_A_ROW):
                kill_daemon(mount.folder)
                daemon = next_daemon(mount.path, mount.folder)
                assert children_of(supervisor) == [daemon]
                file.seek(number * 65536)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read(65536) == bytes(range(256)) * 256
                at_first = at_first or (open_files(supervisor), open_files(daemon))
            assert (open_files(supervisor), open_files(daemon)) == at_first
        assert mount.status()["survival"]["restarts"] == KILLS_IN_A_ROW


def test_requests_that_kill_every_daemon_fail_and_the_mount_lives_on(tmp_path):
    with memory_mounted("basic", tmp_path) as mount:
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "die").read_bytes()
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
        assert "requests were failed (EIO)" in mount.log()
        assert mount.status()["state"] == "mounted"
