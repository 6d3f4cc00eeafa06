"""``lazyfs`` as its users run it: conversions, and mounts that are never left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfs.mount import roles
from tests.support.mounting import folder_of, kill, kill_processes, process_of, wait_for_end

PROGRAM = (sys.executable, "-m", "lazyfs")
COMMAND_WITHIN_S = 300
DAEMON_WITHIN_S = 600
MAX_ASKING = 500


def lazyfs(*words: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command; its output is in what a failing test shows."""
    done = subprocess.run(
        [*PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=COMMAND_WITHIN_S,
        check=False,
    )
    assert not check or done.returncode == 0, f"lazyfs {words}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def output(*command: str | Path) -> str:
    """What a program prints, which must succeed."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def ready(*words: str | Path, stderr: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A ``lazyfs`` whose command in a container has said that it is ready; killed in the end."""
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def convert(source: str, destination: str, *options: str) -> dict:
    """Convert an image; what ``--json`` says of it."""
    document = json.loads(
        lazyfs("convert", "--json", "--quiet", "--no-cache", *options, source, destination).stdout
    )
    assert isinstance(document, dict)
    return document


@dataclass
class LazyMount:
    """A mount by a daemon in the background."""

    path: Path
    pid: int
    folder: Path

    def status(self) -> dict:
        """What ``lazyfs status`` gives for it."""
        [document] = json.loads(lazyfs("status", "--json", self.path).stdout)
        assert isinstance(document, dict)
        return document

    def totals(self) -> dict[str, int]:
        """The counters of all layers together."""
        totals = self.status()["totals"]
        assert isinstance(totals, dict)
        return totals

    def failures(self) -> dict[str, int]:
        """How many requests of readers failed, by errno name."""
        fuse = self.status()["fuse"]
        assert isinstance(fuse, dict)
        failures = fuse["failures"]
        assert isinstance(failures, dict)
        return failures

    def log(self) -> str:
        """What its daemon has said."""
        return (self.folder / "log").read_text(errors="replace")

    def wait_until(self, reached: Callable[[dict[str, int]], bool]) -> None:
        """Ask for the counters until they are as wanted."""
        for _ in range(MAX_ASKING):
            if reached(self.totals()):
                return
        raise AssertionError(f"never reached: {self.totals()}")

    def kill(self) -> None:
        """Kill supervisor and daemon without a warning, and wait until they are gone."""
        kill_processes(self.folder)


@contextlib.contextmanager
def mounted(image: str, directory: Path, *options: str | Path) -> Iterator[LazyMount]:
    """Mount an image; whatever happens, neither mount nor daemon is left."""
    lazyfs("mount", "--mkdir", *options, image, directory)
    with _watched(directory) as mount:
        yield mount


@contextlib.contextmanager
def stored(directory: Path, images: Sequence[str], *options: str | Path) -> Iterator[LazyMount]:
    """Mount a store; whatever happens, neither mount nor daemon is left."""
    lazyfs("store", "--mkdir", *options, directory, *images)
    with _watched(directory) as mount:
        yield mount


@contextlib.contextmanager
def _watched(directory: Path) -> Iterator[LazyMount]:
    """What is mounted on a directory; taken down with the block."""
    mount = None
    watchdog = None
    try:
        [document] = json.loads(lazyfs("status", "--json", directory).stdout)
        mount = LazyMount(directory, document["pid"], folder_of(directory))
        # A daemon that answers nobody must not stop the tests: killing it ends all waiting.
        watchdog = threading.Timer(DAEMON_WITHIN_S, mount.kill)
        watchdog.daemon = True
        watchdog.start()
        yield mount
    finally:
        if watchdog is not None:
            watchdog.cancel()
        lazyfs("umount", "--lazy", directory, check=False)
        if mount is not None:
            if pid := process_of(mount.folder, roles.DAEMON):
                kill(pid, signal.SIGTERM)
                wait_for_end(pid)
            mount.kill()
        lazyfs("umount", directory, check=False)


def forget_pages(files: Sequence[Path]) -> None:
    """Make the kernel forget the content of files, so that the next read asks the daemon."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
