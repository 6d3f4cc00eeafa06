"""Mounts of the suite: ``lazyfs mount`` as a process, and readers that never wait for long."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.control import ask
from tests.support.mounting import is_mounted, real_path

ROOT = Path(__file__).parents[1]
LAZYFS = (sys.executable, "-P", "-m", "lazyfs")
RUNTIME = Path("/run/lazyfs")

READ_WITHIN_S = 25.0
"""Later than this a reader counts as hanging; scripts of faults that make readers wait set
``SHORT_S`` as the time limit of the mount."""
SHORT_S = 3
RECOVERS_WITHIN_S = 25.0
LOGGED_WITHIN_S = 10.0
PAUSE_S = 0.2
MOUNTED_WITHIN_S = 60.0
ENDS_WITHIN_S = 30.0
READ_BYTES = 128 << 10

RIGHT, HUNG, WRONG = "right", "HUNG", "WRONG BYTES"


class RefusedError(Exception):
    """There is no mount; the message is what the command said."""


class FaultError(Exception):
    """Something was seen that no fault may bring about."""


def read(path: Path, forget: bool = True) -> bytes:
    """The content of a file, from the daemon and not from the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if forget:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        pieces = []
        while piece := os.read(descriptor, READ_BYTES):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def in_time(act: Callable[[], str], within_s: float = READ_WITHIN_S) -> str:
    """What ``act`` says: ``EIO`` and the like where it fails, ``HUNG`` if it takes too long."""
    said = [HUNG]

    def run() -> None:
        try:
            said[0] = act()
        except OSError as error:
            said[0] = errno.errorcode.get(error.errno or 0, str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(within_s)
    return said[0]


@dataclass
class Mount:
    """A mount that is served."""

    directory: Path
    root: Path
    """Where this process sees it."""
    files: Mapping[str, bytes]
    process: "subprocess.Popen[str] | None"
    """What serves it, if it is our child."""
    folder: Path
    """Its runtime folder."""
    said: list[str] = field(default_factory=list)

    def one(self, name: str) -> str:
        """What comes of reading one file."""
        path, content = self.root / name, self.files[name]
        return in_time(lambda: RIGHT if read(path) == content else WRONG)

    def outcome(self, *names: str) -> str:
        """What comes of reading files side by side (all of them, if none is named)."""
        wanted = names or tuple(self.files)
        found: dict[str, str] = {}

        def look(name: str) -> None:
            found[name] = self.one(name)

        threads = [threading.Thread(target=look, args=(name,), daemon=True) for name in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(READ_WITHIN_S + PAUSE_S)
        return " and ".join(sorted({found.get(name, HUNG) for name in wanted}))

    def recovers(self, *names: str) -> str:
        """What comes of reading files as soon as what failed a moment ago is forgotten."""
        ends = time.monotonic() + RECOVERS_WITHIN_S
        while (seen := self.outcome(*names)) != RIGHT and time.monotonic() < ends:
            if WRONG in seen or HUNG in seen:
                break
            time.sleep(PAUSE_S)
        return seen

    def status(self) -> dict:
        """What its daemon answers, in the time that ``lazyfs status`` grants it."""
        try:
            return ask(self.folder / "control.sock")
        except MountError as error:
            raise FaultError(f"status: {error}") from error

    def host(self, role: str = "registry") -> dict:
        """What it knows of a host."""
        hosts = self.status()["hosts"]
        assert isinstance(hosts, list)
        [found] = [host for host in hosts if host["role"] == role]
        assert isinstance(found, dict)
        return found

    def totals(self) -> dict[str, int]:
        """The counters of all layers."""
        totals = self.status()["totals"]
        assert isinstance(totals, dict)
        return totals

    def tells(self, words: str) -> bool:
        """Whether it logs that; a line may be on its way."""
        ends = time.monotonic() + LOGGED_WITHIN_S
        while words not in self.log():
            if time.monotonic() > ends:
                return False
            time.sleep(PAUSE_S)
        return True

    def log(self) -> str:
        """What it has said so far."""
        path = self.folder / "log"
        return "".join(self.said) if self.process else path.read_text(errors="replace")


@contextlib.contextmanager
def foreground(
    image: str,
    directory: Path,
    options: Iterable[object],
    files: Mapping[str, bytes],
    *,
    environment: Mapping[str, str],
    prefix: tuple[object, ...] = (),
) -> Iterator[Mount]:
    """Serve a mount by a child, which must end well after the block.

    Raises:
        RefusedError: it was not mounted.
        FaultError: it did not end well.
    """
    directory.mkdir(exist_ok=True)
    command = [*prefix, *LAZYFS, "mount", "--foreground", *options, image, directory]
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **environment},
    )
    said: list[str] = []
    serving = threading.Event()
    listener = threading.Thread(target=_listen, args=(process, said, serving), daemon=True)
    listener.start()
    try:
        if not serving.wait(MOUNTED_WITHIN_S):
            raise FaultError(f"neither mounted nor refused: {''.join(said)}")
        if not any(": serving " in line for line in said):
            process.wait(ENDS_WITHIN_S)
            raise RefusedError("".join(said))
        root = directory if not prefix else Path(f"/proc/{process.pid}/root{directory}")
        yield Mount(directory, root, files, process, _folder_of(directory), said)
        if process.poll() is not None:
            raise FaultError(f"the daemon has ended: {''.join(said)}")
        process.terminate()
        if status := process.wait(ENDS_WITHIN_S):
            raise FaultError(f"the daemon ended with {status}: {''.join(said)}")
    except subprocess.TimeoutExpired as error:
        raise FaultError(f"the daemon does not end: {''.join(said)}") from error
    finally:
        process.kill()
        process.wait()
        listener.join()
        assert process.stdout is not None
        process.stdout.close()
        if not prefix and is_mounted(directory):
            subprocess.run(["umount", "--lazy", directory], check=False)


def _listen(process: "subprocess.Popen[str]", said: list[str], serving: threading.Event) -> None:
    """Read all that the child says, or it stops when the pipe is full."""
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if ": serving " in line:
            serving.set()
    serving.set()


def _folder_of(directory: Path) -> Path:
    """The runtime folder of a mount, while others come and go."""
    for path in RUNTIME.glob("*/state.json"):
        with contextlib.suppress(FileNotFoundError):
            if json.loads(path.read_text())["mountpoint"] == real_path(directory):
                return path.parent
    raise FaultError(f"no runtime folder of {directory}")
