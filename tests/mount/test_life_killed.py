"""A process that is killed while it waits for a mount ends at once, and not at the deadline."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.mounting import COMMAND_WITHIN_S, mounted, needs_fuse

pytestmark = [pytest.mark.mount, needs_fuse]


@pytest.mark.parametrize(
    ("command", "switch", "name", "number"),
    [
        ("cat", "wait", "wait0", signal.SIGKILL),
        ("ls", "held", "held0", signal.SIGKILL),
        ("stat", "held", "held0/below", signal.SIGTERM),
        ("ls", "held", "held0", signal.SIGINT),
    ],
)
def test_a_killed_process_ends(tmp_path: Path, command: str, switch: str, name: str, number: int):
    with mounted("basic", tmp_path, "--timeout", "0") as mount:
        mount.switch(switch, on=True)
        process = subprocess.Popen(
            [command, mount.path / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            mount.wait_for_request()
            process.send_signal(number)
            assert process.wait(COMMAND_WITHIN_S) == -number
        finally:
            mount.switch(switch, on=False)
            process.kill()
            process.wait()
        assert (mount.path / "hello").read_bytes() == b"hello world\n"


def test_a_killed_listing_ends(tmp_path: Path):
    with mounted("slow", tmp_path, "--timeout", "0") as mount:
        command = ["ls", "-l", os.fspath(mount.path)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            mount.wait_for_request()
            process.kill()
            assert process.wait(COMMAND_WITHIN_S) == -signal.SIGKILL
        assert (mount.path / "before").read_bytes() == b"before"


def test_others_go_on_waiting(tmp_path: Path):
    with mounted("basic", tmp_path, "--timeout", "0") as mount:
        mount.switch("held", on=True)
        processes = [
            subprocess.Popen(["ls", mount.path / f"held{number}"], stderr=subprocess.DEVNULL)
            for number in range(2)  # who waits for another's lookup of a name ends with it
        ]
        mount.wait_for_request(2)
        processes[0].kill()
        assert processes[0].wait(COMMAND_WITHIN_S) == -signal.SIGKILL
        assert processes[1].poll() is None
        mount.switch("held", on=False)
        assert processes[1].wait(COMMAND_WITHIN_S) == 2  # no such file, which is the truth


def test_a_process_that_handles_its_signals_is_left_alone(tmp_path: Path):
    with mounted("basic", tmp_path, "--timeout", "0") as mount:
        mount.switch("held", on=True)
        process = subprocess.Popen(
            ["sh", "-c", f"trap 'echo caught' TERM; test -e {mount.path}/held0; echo $?"],
            stdout=subprocess.PIPE,
        )
        mount.wait_for_request()
        process.terminate()
        mount.wait_for_request()
        mount.switch("held", on=False)
        assert process.communicate(timeout=COMMAND_WITHIN_S)[0] == b"caught\n1\n"
