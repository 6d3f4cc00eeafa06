"""Which processes a mount is made of, and what they have of the one that made them."""

import os
import subprocess
from pathlib import Path

import pytest

from lazyfs.mount import roles
from tests.support.mounting import (
    COMMAND_WITHIN_S,
    PROGRAM,
    folder_of,
    lazyfs,
    mounted,
    needs_fuse,
    process_of,
)
from tests.support.survival import children_of, kill_daemon, next_daemon

pytestmark = [pytest.mark.mount, needs_fuse]


def command_line(process: int) -> list[bytes]:
    return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:-1]


def open_paths(process: int) -> list[str]:
    folder = f"/proc/{process}/fd"
    return [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]


def test_the_first_daemon_goes_on_in_the_commands_interpreter_and_later_ones_do_not(tmp_path):
    with mounted("basic", tmp_path) as mount:
        supervisor = process_of(mount.folder, roles.SUPERVISOR)
        daemon = process_of(mount.folder, roles.DAEMON)
        assert supervisor is not None
        assert daemon is not None
        assert children_of(supervisor) == [daemon]
        assert b"mount" in command_line(daemon), "it was started by a program of its own"
        assert b"mount" not in command_line(supervisor)
        assert os.getsid(daemon) == os.getsid(supervisor) == supervisor
        assert {os.readlink(f"/proc/{one}/cwd") for one in (daemon, supervisor)} == {"/"}

        kill_daemon(mount.folder)
        later = next_daemon(mount.path, mount.folder)
        assert children_of(supervisor) == [later]
        assert b"--daemon" in command_line(later)


@pytest.mark.parametrize("closed", ["", "0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_nothing_of_who_mounts_stays_open_and_nothing_that_is_missing_hurts(tmp_path, closed):
    place, theirs = tmp_path / "mnt", tmp_path / "theirs"
    place.mkdir()
    script = f'exec 7>"$0" {closed}; exec "$@"'
    words = [*PROGRAM, "mount", "basic", place]
    subprocess.run(["sh", "-c", script, theirs, *words], timeout=COMMAND_WITHIN_S, check=True)
    try:
        folder = folder_of(place)
        assert os.listdir(place)
        for role in (roles.SUPERVISOR, roles.DAEMON):
            process = process_of(folder, role)
            assert process is not None
            assert os.fspath(theirs) not in open_paths(process)
            assert os.readlink(f"/proc/{process}/fd/2") == os.fspath(folder / "log")
            assert os.readlink(f"/proc/{process}/fd/0") == os.devnull
    finally:
        lazyfs("umount", os.fspath(place))
