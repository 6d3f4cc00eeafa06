"""Killing the daemons of mounts that survive it, and readers that must not notice.

What waits for a new daemon waits in the kernel: ``os.statvfs`` of the mount is answered by the
next daemon and by nobody else.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lazyfs.mount import roles
from tests.support.mounting import kill, process_of, wait_for_end

READER = Path(__file__).with_name("checking_reader.py")
READERS_WITHIN_S = 120


def kill_daemon(folder: Path) -> int:
    """Kill the daemon of a mount, and only it; return which it was."""
    daemon = process_of(folder, roles.DAEMON)
    assert daemon is not None, (folder / "log").read_text()
    kill(daemon, signal.SIGKILL)
    assert wait_for_end(daemon)
    return daemon


def next_daemon(mountpoint: Path, folder: Path) -> int:
    """The daemon that serves by now, which is waited for."""
    os.statvfs(mountpoint)
    daemon = process_of(folder, roles.DAEMON)
    assert daemon is not None
    return daemon


def children_of(process: int) -> list[int]:
    """Those that live, and zombies."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def open_files(process: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{process}/fd"))


class Readers:
    """Processes that read files of a tree again and again and compare what they get."""

    def __init__(self, processes: list["subprocess.Popen[str]"], stop: Path) -> None:
        self._processes = processes
        self._stop = stop

    def finish(self) -> int:
        """Let them end; how many reads they did, all of which were right."""
        self._stop.touch()
        reads = 0
        for process in self._processes:
            said, complaints = process.communicate(timeout=READERS_WITHIN_S)
            assert process.returncode == 0, said + complaints
            reads += int(said)
        return reads

    def running(self) -> bool:
        """Whether none has ended, which they do only upon an error."""
        return all(process.poll() is None for process in self._processes)


@contextlib.contextmanager
def reading(
    root: Path, digests: Mapping[str, str], folder: Path, *, processes: int
) -> Iterator[Readers]:
    """Read the files below ``root``, whose SHA-256 are given by name, in several processes."""
    known, stop = folder / "digests.json", folder / "stop"
    known.write_text(json.dumps(dict(digests)))
    started = [
        subprocess.Popen(
            [sys.executable, READER, root, known, stop, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(processes)
    ]
    try:
        yield Readers(started, stop)
    finally:
        for process in started:
            process.kill()
            process.communicate()
        stop.unlink(missing_ok=True)


def pause(seconds: float) -> None:
    """Let time pass, so that a fault hits at another moment; nothing is waited for."""
    time.sleep(seconds)
