"""Real mounts for tests: of trees in memory, each served by a process of its own.

Nothing here can hang a test for ever: commands have time limits, and a watchdog kills a
daemon that lives too long, which gives whoever waits for it an error.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lazyfs.mount import roles
from lazyfs.mount.mountinfo import current_mounts, top_mount

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, os.fspath(ROOT / "tests/support/memory_tree.py"))

COMMAND_WITHIN_S = 60
DAEMON_WITHIN_S = 180
MAX_ASKING = 200

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="needs root and /dev/fuse",
)


def lazyfs(*words: str, check: bool = True, prefix: tuple[str, ...] = (), **environment: str):
    """Run ``lazyfs`` with the trees in memory for images; ``prefix`` may change the user."""
    return subprocess.run(
        [*prefix, *PROGRAM, *words],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=COMMAND_WITHIN_S,
        check=check,
        env={**os.environ, **environment},
    )


def is_mounted(directory: Path) -> bool:
    """Whether the kernel has a lazyfs mount there."""
    top = top_mount(real_path(directory), current_mounts())
    return top is not None and top.file_system_type == "fuse.lazyfs"


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A temporary folder that every user can enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@dataclass
class Mount:
    """A mount in the background."""

    path: Path
    pid: int
    folder: Path
    switches: Path

    def status(self) -> dict:
        """What ``lazyfs status`` gives for it."""
        document: dict
        [document] = json.loads(lazyfs("status", "--json", os.fspath(self.path)).stdout)
        return document

    def wait_for_request(self, count: int = 1) -> None:
        """Return once so many requests are waiting inside the daemon."""
        for _ in range(MAX_ASKING):
            if self.status()["fuse"]["in_flight"] >= count:
                return
        raise AssertionError("no request came")

    def kill(self) -> None:
        """Kill supervisor and daemon, so that nothing serves the mount any more."""
        kill_processes(self.folder)

    def log(self) -> str:
        """What its daemon has said."""
        return (self.folder / "log").read_text(errors="replace")

    def switch(self, name: str, *, on: bool) -> None:
        """Make files of the tree wait, or let them go on."""
        if on:
            (self.switches / name).touch()
        else:
            (self.switches / name).unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(image: str, tmp_path: Path, *options: str, name: str = "mnt") -> Iterator[Mount]:
    """Mount a tree; whatever happens, neither mount nor daemon is left."""
    directory, switches = tmp_path / name, tmp_path / f"{name}-switches"
    directory.mkdir()
    switches.mkdir()
    lazyfs("mount", "--quiet", *options, f"{image}@{switches}", os.fspath(directory))
    mount = None
    watchdog = None
    try:
        [document] = json.loads(lazyfs("status", "--json", os.fspath(directory)).stdout)
        mount = Mount(directory, document["pid"], folder_of(directory), switches)
        watchdog = threading.Timer(DAEMON_WITHIN_S, mount.kill)
        watchdog.daemon = True
        watchdog.start()
        yield mount
    finally:
        if watchdog is not None:
            watchdog.cancel()
        for switch in switches.iterdir():
            switch.unlink()
        lazyfs("umount", "--lazy", os.fspath(directory), check=False)
        if mount is not None and mount.folder.exists():
            mount.kill()
            lazyfs("umount", os.fspath(directory), check=False)


def real_path(directory: Path) -> str:
    """As the kernel's list of mounts has it; found without asking a mount there."""
    return os.fspath(directory.parent.resolve() / directory.name)


def folder_of(directory: Path, base: Path = Path("/run/lazyfs")) -> Path:
    """The runtime folder of the mount on a directory."""
    for path in base.glob("*/state.json"):
        if json.loads(path.read_text())["mountpoint"] == real_path(directory):
            return path.parent
    raise LookupError(directory)


def process_of(folder: Path, role: int) -> int | None:
    """The supervisor or daemon of a mount, by the roles of ``lazyfs.mount.roles``."""
    return roles.holder(os.fspath(folder / roles.FILE_NAME), role)


def kill_processes(folder: Path) -> None:
    """Kill the supervisor of a mount, then its daemon, and wait until they are gone."""
    for role in (roles.SUPERVISOR, roles.DAEMON):
        if pid := process_of(folder, role):
            kill(pid, signal.SIGKILL)
            assert wait_for_end(pid)


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal; no error if the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def turn_read_only(disk: Path) -> None:
    """Make a mounted disk read-only, once nobody is writing a file on it.

    Readers have their data before the cache has it, so a daemon may be writing just now.
    """
    ends = time.monotonic() + COMMAND_WITHIN_S
    while True:
        command = ["mount", "-o", "remount,ro", os.fspath(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if "busy" not in done.stderr or time.monotonic() > ends:
            done.check_returncode()
            return
        time.sleep(0.01)


def wait_for_end(pid: int) -> bool:
    """Wait, as long as a command may take, until a process that is not our child has ended."""
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        watch = select.poll()
        watch.register(descriptor, select.POLLIN)
        return bool(watch.poll(COMMAND_WITHIN_S * 1000))
    finally:
        os.close(descriptor)
