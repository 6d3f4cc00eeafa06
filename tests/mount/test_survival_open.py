"""What processes hold of a mount goes on over the death of its daemon."""

import contextlib
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.mount import roles
from tests.support.mounting import (
    COMMAND_WITHIN_S,
    Mount,
    lazyfs,
    mounted,
    needs_fuse,
    process_of,
    wait_for_end,
)
from tests.support.survival import kill_daemon, next_daemon

pytestmark = [pytest.mark.mount, needs_fuse]

PAGE = 4096
LARGE = bytes(range(256)) * 16384


def forget_pages(file: int) -> None:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def another_daemon(mount: Mount) -> Iterator[None]:
    """Kill the daemon before the block."""
    before = kill_daemon(mount.folder)
    yield
    assert next_daemon(mount.path, mount.folder) != before


def test_an_open_file(tmp_path):
    with mounted("basic", tmp_path) as mount, open(mount.path / "large", "rb", 0) as file:
        assert file.read(PAGE) == LARGE[:PAGE]
        with another_daemon(mount):
            forget_pages(file.fileno())
            assert file.read(PAGE) == LARGE[PAGE : 2 * PAGE]
            assert os.fstat(file.fileno()).st_size == len(LARGE)
            assert os.pread(file.fileno(), 100, len(LARGE) - 50) == LARGE[-50:]


def test_a_file_open_on_an_inode_whose_name_was_never_asked_again(tmp_path):
    with mounted("basic", tmp_path) as mount:
        file = os.open(mount.path / "dir/sub/file", os.O_RDONLY)
        folder = os.open(mount.path / "dir", os.O_RDONLY | os.O_DIRECTORY)
        path = os.open(mount.path / "dir/sub", os.O_PATH)
        with another_daemon(mount):
            assert os.read(file, 10) == b"deep"
            assert os.listdir(folder) == ["sub"]
            assert os.listdir(f"/proc/self/fd/{path}") == ["file"]
        for descriptor in (file, folder, path):
            os.close(descriptor)


def test_a_working_directory(tmp_path):
    script = "read _; ls; cat sub/file; stat -c %F sub"
    with (
        mounted("basic", tmp_path) as mount,
        subprocess.Popen(
            ["sh", "-c", script],
            cwd=mount.path / "dir",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as shell,
        another_daemon(mount),
    ):
        assert shell.communicate(b"\n", COMMAND_WITHIN_S)[0] == b"sub\ndeepdirectory\n"


def test_a_mapping(tmp_path):
    with (
        mounted("basic", tmp_path) as mount,
        open(mount.path / "large", "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
    ):
        assert mapping[:PAGE] == LARGE[:PAGE]
        with another_daemon(mount):
            mapping.madvise(mmap.MADV_DONTNEED)
            forget_pages(file.fileno())
            assert mapping[:] == LARGE


@pytest.mark.parametrize("already", [1, 100, 5000])
def test_a_directory_stream_half_read(tmp_path, already):
    with mounted("big", tmp_path) as mount, os.scandir(mount.path / "big") as stream:
        names = [next(stream).name for _ in range(already)]
        with another_daemon(mount):
            names += [entry.name for entry in stream]
    assert names == [f"file-{number:05}" for number in range(10_000)]


def test_locks(tmp_path):
    with mounted("basic", tmp_path) as mount, open(mount.path / "hello", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_SH, 5, 0)
        with another_daemon(mount):
            script = (
                "import fcntl, sys; file = open(sys.argv[1], 'rb');"
                "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
            )
            other = subprocess.run(
                [sys.executable, "-c", script, mount.path / "hello"],
                capture_output=True,
                text=True,
                timeout=COMMAND_WITHIN_S,
            )
            assert "BlockingIOError" in other.stderr
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.lockf(file, fcntl.LOCK_UN)


def test_a_running_program(tmp_path):
    with mounted("basic", tmp_path) as mount:
        program = subprocess.Popen([mount.path / "program", "600"])
        try:
            with another_daemon(mount):
                assert os.readlink(f"/proc/{program.pid}/exe") == f"{mount.path}/program"
                assert program.poll() is None
                second: list[str | Path] = [mount.path / "program", "0"]
                assert subprocess.run(second, timeout=COMMAND_WITHIN_S).returncode == 0
        finally:
            program.send_signal(signal.SIGTERM)
            assert program.wait(COMMAND_WITHIN_S) == -signal.SIGTERM


def test_names_attributes_links_and_xattrs(tmp_path):
    with mounted("basic", tmp_path) as mount:
        before = os.lstat(mount.path / "hard1")
        with another_daemon(mount):
            assert os.lstat(mount.path / "hard2") == before
            assert os.readlink(mount.path / "link") == "hello"
            assert os.getxattr(mount.path / "xattrs", "user.small") == b"1"
            assert not os.path.lexists(mount.path / "absent")


def test_two_mounts_are_two(tmp_path):
    with mounted("basic", tmp_path) as one, mounted("big", tmp_path, name="two") as two:
        other = process_of(two.folder, roles.DAEMON)
        with another_daemon(one):
            assert (one.path / "hello").read_bytes() == b"hello world\n"
            assert (two.path / "big/file-00007").read_bytes() == b"7"
        assert process_of(two.folder, roles.DAEMON) == other


def test_a_restart_by_command(tmp_path):
    with mounted("basic", tmp_path) as mount, open(mount.path / "large", "rb", 0) as file:
        daemon, supervisor = (process_of(mount.folder, role) for role in (1, 0))
        assert daemon is not None
        assert supervisor is not None
        lazyfs("restart", os.fspath(mount.path))
        assert wait_for_end(daemon)
        assert process_of(mount.folder, roles.SUPERVISOR) == supervisor
        assert process_of(mount.folder, roles.DAEMON) not in (None, daemon)
        forget_pages(file.fileno())
        assert file.read(PAGE) == LARGE[:PAGE]
        assert "died" not in mount.log()
        assert mount.status()["survival"] == {
            "survives": True,
            "why": "its supervisor keeps it",
            "restarts": 1,
        }


def test_a_restart_in_the_middle_of_a_read(tmp_path):
    with mounted("basic", tmp_path) as mount:
        mount.switch("wait", on=True)
        reader = subprocess.Popen(["cat", mount.path / "wait0"], stdout=subprocess.PIPE)
        mount.wait_for_request()
        lazyfs("restart", os.fspath(mount.path))
        mount.switch("wait", on=False)
        assert reader.communicate(timeout=COMMAND_WITHIN_S)[0] == b"wait:wait"


def test_a_restart_of_what_is_no_mount(tmp_path):
    done = lazyfs("restart", os.fspath(tmp_path), check=False)
    assert done.returncode == 1
    assert done.stderr == f"lazyfs restart: {tmp_path} has no lazyfs mount that is alive\n"


def test_links_are_asked_once(tmp_path):
    with mounted("basic", tmp_path) as mount:
        link = Path(mount.path / "link")
        for _ in range(10):
            assert os.readlink(link) == "hello"
        assert mount.status()["calls"]["link_target"] == 1


def test_names_of_one_directory_are_looked_up_side_by_side(tmp_path):
    with mounted("basic", tmp_path) as mount:
        mount.switch("held", on=True)
        lookups = [
            subprocess.Popen(["ls", mount.path / f"held{number}"], stderr=subprocess.DEVNULL)
            for number in range(4)
        ]
        mount.wait_for_request(len(lookups))
        mount.switch("held", on=False)
        assert [lookup.wait(COMMAND_WITHIN_S) for lookup in lookups] == [2] * len(lookups)
