"""Where survival ends: daemons that cannot start, dead supervisors, plain mounts, unmounting."""

import contextlib
import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lazyfs.mount import roles
from lazyfs.mount.unmount import detach
from tests.support.memory_tree import OLD_KERNEL_VARIABLE, WATCHDOG_VARIABLE
from tests.support.mounting import (
    MAX_ASKING,
    Mount,
    is_mounted,
    kill,
    lazyfs,
    mounted,
    needs_fuse,
    process_of,
    wait_for_end,
)
from tests.support.survival import children_of, kill_daemon, next_daemon

pytestmark = [pytest.mark.mount, needs_fuse]


def supervisor_of(mount: Mount) -> int:
    supervisor = process_of(mount.folder, roles.SUPERVISOR)
    assert supervisor is not None
    return supervisor


def findings(about: Path) -> dict[str, str]:
    """What the doctor says about a mount: text by level."""
    done = lazyfs("doctor", "--json", check=False)
    found = [finding for finding in json.loads(done.stdout) if finding["about"] == str(about)]
    assert done.returncode == int("problem" in done.stdout)
    return {finding["level"]: finding["text"] for finding in found}


def test_a_daemon_that_cannot_start_again_is_given_up(tmp_path):
    with mounted("basic", tmp_path) as mount:
        file = os.open(mount.path / "large", os.O_RDONLY)
        supervisor = supervisor_of(mount)
        mount.switch("gone", on=True)
        kill_daemon(mount.folder)
        with pytest.raises(OSError) as failed:  # it waited, and then got an error
            os.read(file, 1)
        assert failed.value.errno in (errno.EIO, errno.ECONNABORTED, errno.ENOTCONN)
        assert wait_for_end(supervisor)
        with pytest.raises(OSError, match="not connected"):
            os.stat(mount.path / "never asked for")
        document = mount.status()
        assert document["state"] == "dead"
        assert "gave up after" in document["problem"]
        assert "registry.test: gone" in document["problem"]
        assert "gave up" in mount.log().replace("giving up", "gave up")
        assert "a dead mount" in findings(mount.path)["problem"]
        with contextlib.suppress(OSError):
            os.close(file)  # the kernel has nobody to tell
        lazyfs("umount", os.fspath(mount.path))
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()


def test_while_no_daemon_can_start_the_status_says_so(tmp_path):
    with mounted("basic", tmp_path) as mount:
        mount.switch("gone", on=True)
        kill_daemon(mount.folder)
        document = mount.status()
        assert document["state"] == "restarting"
        assert document["problem"]
        assert "restarting" in findings(mount.path)["warning"]
        mount.switch("gone", on=False)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
        assert mount.status()["state"] == "mounted"


def test_without_its_supervisor_a_mount_works_and_says_what_it_has_lost(tmp_path):
    with mounted("basic", tmp_path) as mount:
        supervisor = supervisor_of(mount)
        kill(supervisor, signal.SIGKILL)
        assert wait_for_end(supervisor)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
        document = mount.status()
        assert document["state"] == "mounted"
        assert document["survival"]["survives"] is False
        assert document["survival"]["why"] == "its supervisor has died"
        assert "its supervisor has died" in findings(mount.path)["warning"]
        done = lazyfs("restart", os.fspath(mount.path), check=False)
        assert (done.returncode, "its supervisor has died" in done.stderr) == (1, True)
        os.kill(mount.pid, signal.SIGUSR1)  # which it must not obey: nobody would go on
        refusal = "not restarting: its supervisor has died"
        assert any(mount.status() and refusal in mount.log() for _ in range(MAX_ASKING))
        assert (mount.path / "large").read_bytes() == bytes(range(256)) * 16384
        lazyfs("umount", os.fspath(mount.path))
        assert wait_for_end(mount.pid)
        assert not mount.folder.exists()


def test_without_both_a_mount_is_dead(tmp_path):
    with mounted("basic", tmp_path) as mount:
        mount.kill()
        with pytest.raises(OSError, match="not connected"):
            os.stat(mount.path / "never asked for")
        assert mount.status()["state"] == "dead"
        assert "a dead mount" in findings(mount.path)["problem"]
        lazyfs("umount", os.fspath(mount.path))
        assert not is_mounted(mount.path)


def test_unmounting_while_a_daemon_is_being_started(tmp_path):
    with mounted("basic", tmp_path) as mount:
        supervisor = supervisor_of(mount)
        mount.switch("gone", on=True)
        kill_daemon(mount.folder)
        lazyfs("umount", os.fspath(mount.path))
        assert wait_for_end(supervisor)
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()


def test_unmounting_from_outside_while_a_daemon_opens_the_image(tmp_path):
    with mounted("gated", tmp_path) as mount:
        supervisor = supervisor_of(mount)
        (mount.switches / "waiting").unlink()
        mount.switch("closed", on=True)
        kill_daemon(mount.folder)
        for _ in range(MAX_ASKING):  # it takes the switches' file to know that it opens
            if (mount.switches / "waiting").exists():
                break
            mount.status()
        opening = int((mount.switches / "waiting").read_text())
        detach(os.fspath(mount.path), lazy=False)  # umount(8) would ask the daemon
        assert wait_for_end(opening)
        assert wait_for_end(supervisor)
        assert not mount.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_ends_the_mount(tmp_path, number):
    with mounted("basic", tmp_path) as mount:
        supervisor = supervisor_of(mount)
        kill(supervisor, number)
        assert wait_for_end(supervisor)
        assert wait_for_end(mount.pid)
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()


def test_a_signal_ends_a_mount_whose_daemon_cannot_start(tmp_path):
    with mounted("basic", tmp_path) as mount:
        supervisor = supervisor_of(mount)
        mount.switch("gone", on=True)
        kill_daemon(mount.folder)
        kill(supervisor, signal.SIGTERM)
        assert wait_for_end(supervisor)
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()


def test_a_signal_ends_a_busy_mount_and_the_log_says_who_held_it(tmp_path):
    with mounted("basic", tmp_path) as mount:
        holder = subprocess.Popen(["sleep", "600"], cwd=mount.path / "dir")
        try:
            with open(mount.folder / "log") as log:
                os.kill(mount.pid, signal.SIGTERM)
                assert wait_for_end(mount.pid)
                assert f"sleep (process {holder.pid}: working directory)" in log.read()
            assert not is_mounted(mount.path)
        finally:
            holder.kill()
            holder.wait()


def test_a_hanging_daemon_is_replaced_by_hand(tmp_path):
    with mounted("basic", tmp_path) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
        lazyfs("restart", os.fspath(mount.path))
        assert wait_for_end(mount.pid)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"


def test_nothing_is_left_of_many_daemons(tmp_path):
    with mounted("basic", tmp_path) as mount:
        supervisor = supervisor_of(mount)
        daemon = mount.pid
        for _ in range(5):
            kill_daemon(mount.folder)
            daemon = next_daemon(mount.path, mount.folder)
        assert children_of(supervisor) == [daemon]
        lazyfs("umount", os.fspath(mount.path))
        assert wait_for_end(supervisor)
        assert wait_for_end(daemon)


def test_a_mount_on_an_old_kernel_works_and_says_that_it_does_not_survive(tmp_path, monkeypatch):
    monkeypatch.setenv(OLD_KERNEL_VARIABLE, "1")
    with mounted("basic", tmp_path) as mount:
        monkeypatch.delenv(OLD_KERNEL_VARIABLE)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
        document = mount.status()
        assert document["survival"] == {
            "survives": False,
            "why": "the kernel cannot send requests again (Linux 6.9 and later can)",
            "restarts": 0,
        }
        said = lazyfs("status", os.fspath(mount.path)).stdout
        assert "no: the kernel cannot send requests again" in said
        done = lazyfs("restart", os.fspath(mount.path), check=False)
        assert "cannot be restarted" in done.stderr
        supervisor = supervisor_of(mount)
        os.kill(mount.pid, signal.SIGKILL)
        assert wait_for_end(supervisor)
        assert mount.status()["state"] == "dead"
        with pytest.raises(OSError, match="not connected"):
            os.stat(mount.path / "never asked for")
        lazyfs("umount", os.fspath(mount.path))
        assert not mount.folder.exists()


def test_a_mount_in_the_foreground_ends_with_its_process(tmp_path):
    directory = tmp_path / "mnt"
    directory.mkdir()
    from tests.support.mounting import PROGRAM

    words = [*PROGRAM, "mount", "--foreground", "--quiet", "basic", directory]
    daemon = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        while not is_mounted(directory):
            assert daemon.poll() is None
        os.statvfs(directory)
        [document] = json.loads(lazyfs("status", "--json", os.fspath(directory)).stdout)
        assert document["survival"]["survives"] is False
        assert "foreground" in document["survival"]["why"]
    finally:
        daemon.kill()
        daemon.communicate()
    lazyfs("umount", os.fspath(directory))
    assert not is_mounted(directory)


def test_a_hanging_daemon_is_replaced_by_the_watchdog(tmp_path, monkeypatch):
    monkeypatch.setenv(WATCHDOG_VARIABLE, "8")
    with mounted("basic", tmp_path) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
        assert wait_for_end(mount.pid)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
        assert "was silent for 8 s: killing it" in mount.log()
        assert mount.status()["survival"]["restarts"] >= 1


def test_a_daemon_that_hangs_while_it_starts_is_replaced_too(tmp_path, monkeypatch):
    monkeypatch.setenv(WATCHDOG_VARIABLE, "8")
    with mounted("gated", tmp_path) as mount:
        (mount.switches / "waiting").unlink()
        mount.switch("closed", on=True)
        kill_daemon(mount.folder)
        for _ in range(MAX_ASKING):
            if (mount.switches / "waiting").exists():
                break
            mount.status()
        opening = int((mount.switches / "waiting").read_text())
        os.kill(opening, signal.SIGSTOP)
        assert wait_for_end(opening)
        mount.switch("closed", on=False)
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
