"""Starts supervisor and daemon in the background and waits until the mount is usable."""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.logs import LogChoice
from lazyfs.mount.request import MountRequest
from lazyfs.mount.spawning import Child, Descriptors, spawn
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
    show: Callable[[str], None],
    logs: LogChoice = LogChoice(),  # noqa: B008 - immutable
) -> None:
    """Return when the mount is usable; on any failure nothing of it is left.

    Args:
        request: what to mount where.
        lock: the descriptor that holds the runtime folder's lock; the daemon keeps it.
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
                process = _spawn(request, lock, theirs.fileno(), logs)
            failure = _wait_for_word(report.readline, show)
        finally:
            if failure is not None:
                if process is not None:
                    status = process.end(END_WITHIN_S)
                    failure = failure or _last_words(status, request.folder.log)
                remove_mount(request.mountpoint)
                request.folder.remove()
    if failure is not None:
        raise MountError(failure)


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


def _spawn(request: MountRequest, lock: int, report: int, logs: LogChoice) -> Child:
    """Start supervisor and daemon, in their own session."""

    def serve(report: int, keeper: int) -> int:
        gc.disable()  # of what is imported nothing is garbage; who imports the rest enables it
        # Only now: nobody but the daemon needs them, and they take long.
        from lazyfs.mount.background import serve_first

        return serve_first(request, logs, report, keeper)

    folder = os.fspath(request.folder.path)
    daemon = [*DAEMON_COMMAND, *logs.arguments(), request.to_json()]
    with request.folder.log.open("ab") as log:
        given = Descriptors(lock, report, log.fileno())
        return spawn([*SUPERVISOR_COMMAND, folder], daemon, given, serve)


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


def _last_words(status: int, log: Path) -> str:
    """What is known of a daemon that ended without giving a reason."""
    try:
        tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        tail = ""
    how = (
        f"was killed by {signal.Signals(-status).name}"
        if status < 0
        else f"ended with status {status}"
    )
    return f"the daemon {how} before the mount was ready" + (f"; its log: {tail}" if tail else "")
