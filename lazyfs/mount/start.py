"""Starts supervisor and daemon in the background and waits until the mount is usable."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.logs import LogChoice
from lazyfs.mount.request import MountRequest
from lazyfs.mount.unmount import remove_mount

DAEMON_COMMAND = (sys.executable, "-P", os.fspath(Path(__file__).with_name("__main__.py")))

SUPERVISOR_COMMAND = (
    *(sys.executable, "-I", "-S"),  # it needs nothing but the standard library and itself
    os.fspath(Path(__file__).with_name("supervisor.py")),
)

END_WITHIN_S = 10.0
"""How long a daemon that is told to end may take before it is killed."""

MAX_LINE_BYTES = 1 << 20
LOG_TAIL_BYTES = 2000


def start_in_background(
    request: MountRequest,
    lock: int,
    *,
    debug: bool,
    show: Callable[[str], None],
    logs: LogChoice = LogChoice(),  # noqa: B008 - immutable
) -> None:
    """Return when the mount is usable; on any failure nothing of it is left.

    Args:
        request: what to mount where.
        lock: the descriptor that holds the runtime folder's lock; the daemon keeps it.
        debug: the daemon logs much.
        show: given each warning that comes while the image is opened.
        logs: how supervisor and daemon write their log.

    Raises:
        MountError: with the daemon's reason.
        KeyboardInterrupt: the user did not want to wait.
    """
    ours, theirs = socket.socketpair()
    process = None
    failure: str | None = ""
    with ours, ours.makefile("rb") as report:
        try:
            with theirs, _interrupts_deferred():
                words = [*logs.arguments(), *(["--debug"] if debug else [])]
                process = _spawn(request, lock, theirs.fileno(), words)
            failure = _wait_for_word(report.readline, show)
        finally:
            if failure is not None:
                if process is not None:
                    _end(process)
                    failure = failure or _last_words(process, request.folder.log)
                remove_mount(request.mountpoint)
                request.folder.remove()
    if failure is not None:
        raise MountError(failure)
    process.returncode = 0  # it lives on without us: there is nothing to wait for


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait, so that no process is started without being known.

    Raises:
        KeyboardInterrupt: on leaving, if there was one.
    """
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        raise KeyboardInterrupt


def _spawn(
    request: MountRequest, lock: int, report: int, options: Sequence[str]
) -> "subprocess.Popen[bytes]":
    """Start a supervisor, in its own session; it inherits nothing but two descriptors."""
    folder = os.fspath(request.folder.path)
    words = [*SUPERVISOR_COMMAND, folder, str(lock), str(report), *DAEMON_COMMAND]
    with request.folder.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own program
            [*words, *options, request.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock, report),
            cwd="/",
        )


def _wait_for_word(read_line: Callable[[int], bytes], show: Callable[[str], None]) -> str | None:
    """Wait for the daemon's last line: None if the mount is ready, else why not ("": unsaid)."""
    while line := read_line(MAX_LINE_BYTES):
        try:
            word = json.loads(line)
        except ValueError:
            continue
        if "ready" in word:
            return None
        if "error" in word:
            return str(word["error"])
        if "warning" in word:
            show(str(word["warning"]))
    return ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Make sure that the process is gone."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """What is known of a daemon that ended without giving a reason."""
    try:
        tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        tail = ""
    how = (
        f"was killed by {signal.Signals(-process.returncode).name}"
        if process.returncode < 0
        else f"ended with status {process.returncode}"
    )
    return f"the daemon {how} before the mount was ready" + (f"; its log: {tail}" if tail else "")
