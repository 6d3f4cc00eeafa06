"""A mount as a service: systemd keeps its descriptor and starts the next daemon."""

import configparser
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_systemd import FakeSystemd, fake_systemd
from tests.support.memory_tree import OLD_KERNEL_VARIABLE
from tests.support.mounting import (
    COMMAND_WITHIN_S,
    PROGRAM,
    ROOT,
    folder_of,
    is_mounted,
    lazyfs,
    needs_fuse,
)

pytestmark = [pytest.mark.mount, needs_fuse]

UNIT = ROOT / "docs/systemd/lazyfs@.service"
HANDED_OVER = 75


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    (tmp_path / "switches").mkdir()
    yield path
    lazyfs("umount", "--lazy", os.fspath(path), check=False)
    lazyfs("umount", os.fspath(path), check=False)


@pytest.fixture
def systemd(directory: Path) -> Iterator[FakeSystemd]:
    with tempfile.TemporaryDirectory() as folder, fake_systemd(Path(folder)) as manager:
        yield manager


def image(directory: Path, name: str = "basic") -> str:
    return f"{name}@{directory.parent / 'switches'}"


def start(systemd: FakeSystemd, directory: Path, name: str = "basic") -> int:
    words = ("mount", "--foreground", "--quiet", image(directory, name), directory)
    process = systemd.start(*words)
    assert systemd.wait_for("READY")["READY"] == "1"
    return process


def survival(directory: Path) -> dict:
    [document] = json.loads(lazyfs("status", "--json", os.fspath(directory)).stdout)
    assert document["state"] == "mounted"
    found = document["survival"]
    assert isinstance(found, dict)
    return found


def test_what_a_service_says(systemd: FakeSystemd, directory: Path):
    process = start(systemd, directory)
    [stored] = [message for message in systemd.messages if "FDSTORE" in message]
    name = f"lazyfs-{folder_of(directory).name}"
    assert stored == {"FDSTORE": "1", "FDNAME": name, "FDPOLL": "0"}
    assert os.readlink(f"/proc/self/fd/{systemd.store[name]}") == "/dev/fuse"
    assert survival(directory) == {"survives": True, "why": "systemd keeps it", "restarts": 0}
    assert systemd.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
    os.kill(process, signal.SIGTERM)
    assert systemd.wait() == (0, "")
    systemd.receive_all()
    assert systemd.store == {}
    assert not is_mounted(directory)


HOLDER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
for _ in sys.stdin:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    print(os.read(file, 3).hex(), flush=True)
"""
"""Not this process: who starts daemons must hold nothing of a mount that has none."""


def test_the_next_daemon_goes_on(systemd: FakeSystemd, directory: Path):
    process = start(systemd, directory)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory / "large"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        for number, expected in enumerate(("000102", "030405", "060708")):
            holder.stdin.write("\n")
            assert holder.stdout.readline() == expected + "\n"
            assert survival(directory)["restarts"] == number
            os.kill(process, signal.SIGKILL)
            assert systemd.wait()[0] == -signal.SIGKILL
            process = start(systemd, directory)
    lazyfs("umount", os.fspath(directory))
    assert systemd.wait()[0] == 0
    assert not folder_exists(directory)


def folder_exists(directory: Path) -> bool:
    try:
        folder_of(directory)
    except LookupError:
        return False
    return True


def test_readers_wait_while_there_is_no_daemon(systemd: FakeSystemd, directory: Path):
    os.kill(start(systemd, directory), signal.SIGKILL)
    assert systemd.wait()[0] == -signal.SIGKILL
    reader = subprocess.Popen(["cat", directory / "hello"], stdout=subprocess.PIPE)
    start(systemd, directory)
    assert reader.communicate(timeout=COMMAND_WITHIN_S)[0] == b"hello world\n"


def test_a_reload_hands_over(systemd: FakeSystemd, directory: Path):
    process = start(systemd, directory)
    os.kill(process, signal.SIGUSR1)
    assert systemd.wait() == (HANDED_OVER, "")
    assert len(systemd.store) == 1
    start(systemd, directory)
    assert (directory / "hello").read_bytes() == b"hello world\n"


def test_a_restart_by_command(systemd: FakeSystemd, directory: Path):
    start(systemd, directory)
    command = subprocess.Popen([*PROGRAM, "restart", directory], stderr=subprocess.PIPE)
    assert systemd.wait()[0] == HANDED_OVER
    start(systemd, directory)
    assert command.communicate(timeout=COMMAND_WITHIN_S)[1] == b""
    assert command.returncode == 0


def test_a_mount_that_was_unmounted_meanwhile_is_made_anew(systemd: FakeSystemd, directory: Path):
    process = start(systemd, directory)
    before = folder_of(directory)
    os.kill(process, signal.SIGKILL)
    assert systemd.wait()[0] == -signal.SIGKILL
    lazyfs("umount", os.fspath(directory))
    start(systemd, directory)
    assert folder_of(directory) != before
    assert (directory / "hello").read_bytes() == b"hello world\n"
    assert survival(directory)["restarts"] == 0
    assert len(systemd.store) == 1


def test_a_store_that_was_lost_costs_the_mount_and_not_the_service(
    systemd: FakeSystemd, directory: Path
):
    os.kill(start(systemd, directory), signal.SIGKILL)
    assert systemd.wait()[0] == -signal.SIGKILL
    systemd.forget()
    start(systemd, directory)
    assert (directory / "hello").read_bytes() == b"hello world\n"


def test_another_image_takes_the_place_of_the_kept_one(systemd: FakeSystemd, directory: Path):
    os.kill(start(systemd, directory), signal.SIGKILL)
    assert systemd.wait()[0] == -signal.SIGKILL
    start(systemd, directory, "big")
    assert (directory / "big/file-00007").read_bytes() == b"7"
    assert len(systemd.store) == 1


def test_a_mount_on_an_old_kernel_is_a_service_too(
    systemd: FakeSystemd, directory: Path, monkeypatch
):
    monkeypatch.setenv(OLD_KERNEL_VARIABLE, "1")
    start(systemd, directory)
    assert systemd.store == {}
    assert "cannot send requests again" in survival(directory)["why"]


def test_a_service_that_fails_says_why(systemd: FakeSystemd, directory: Path):
    systemd.start("mount", "--foreground", "refused", directory)
    status, said = systemd.wait()
    assert (status, said) == (1, "lazyfs mount: layer 3 is not EROFS\n")
    systemd.receive_all()
    assert {"STATUS": "layer 3 is not EROFS"} in systemd.messages
    assert not is_mounted(directory)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path):
    unit = tmp_path / "lazyfs@app.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/lazyfs", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_says_what_the_program_needs():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["FileDescriptorStoreMax"] == "1"
    assert service["RestartForceExitStatus"] == str(HANDED_OVER)
    assert "-USR1" in service["ExecReload"]
    assert "mount --foreground" in service["ExecStart"]
    for separating in ("PrivateMounts", "PrivateTmp", "ProtectSystem", "ProtectHome"):
        assert separating not in service
