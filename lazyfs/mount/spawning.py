"""The processes of a new mount, made out of the one that asks for it.

The command forks; its child forks once more, and then becomes the supervisor by running that
program, which keeps its children. The grandchild is the first daemon: it goes on with the
interpreter and the modules that the command has, and does not wait for the supervisor. Later
daemons are started by the supervisor, which has nothing of this.
"""

import fcntl
import itertools
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from lazyfs.mount.supervision import ENDING_SIGNALS, NO_CHILD, RESTART_SIGNAL

FIRST_FREE = 3
"""Descriptors below are standard input, output and error."""

FAILED = 127
"""Exit status of a process that came to nothing, as of a shell."""


class Descriptors(NamedTuple):
    """What supervisor and daemon get from who starts them."""

    lock: int
    """Of the runtime folder."""
    report: int
    """Where the first daemon tells how it goes."""
    log: int
    """What both write to."""


class Child:
    """A process that this one has started; it may go on when this one ends."""

    def __init__(self, number: int) -> None:
        self._number = number

    def end(self, within_s: float) -> int:
        """Make sure that it is gone: asked to end, and killed when the time is over.

        Returns:
            Its exit status; negative: the signal that ended it.
        """
        descriptor = os.pidfd_open(self._number)  # not waited for yet, so the number is its
        try:
            watch = select.poll()
            watch.register(descriptor, select.POLLIN)
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if not watch.poll(within_s * 1000):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            _, raw = os.waitpid(self._number, 0)
        finally:
            os.close(descriptor)
        return os.waitstatus_to_exitcode(raw)


def spawn(
    supervisor: Sequence[str],
    daemon: Sequence[str],
    given: Descriptors,
    serve: Callable[[int, int], int],
) -> Child:
    """Start supervisor and daemon in a session of their own, with nothing but what is ``given``.

    Args:
        supervisor: command of the supervisor; what else it must know is added.
        daemon: command of later daemons; also of the first, where this process has threads: what
            they hold would be held for ever in a process that was forked from it.
        given: what they get.
        serve: the first daemon's work. Given the descriptors of the report and of the line to the
            supervisor, it returns the exit status.
    """
    alone = threading.active_count() == 1
    child = os.fork()
    if child:
        return Child(child)
    try:
        given = _settle(given)
        first, report = NO_CHILD, given.report
        if alone:
            first = _fork_daemon(given, serve)
            report = -1
        # What is sent before the supervisor listens waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING_SIGNALS, RESTART_SIGNAL))
        os.set_inheritable(given.lock, True)
        if report >= 0:
            os.set_inheritable(report, True)
        words = [*supervisor, str(given.lock), str(report), first, *daemon]
        os.execv(words[0], words)  # noqa: S606 - our own program
    finally:
        _leave(FAILED)


def _settle(given: Descriptors) -> Descriptors:
    """Leave session, folder and descriptors of who forked us, but for what is ``given``."""
    os.setsid()
    os.chdir("/")
    # A user may have closed the standard ones, and then these can have their numbers.
    given = Descriptors(*(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE) for one in given))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((nothing, given.log, given.log)):
        os.dup2(source, number)
    edges = sorted({FIRST_FREE - 1, *given, os.sysconf("SC_OPEN_MAX")})
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)
    # Not the ones there are: they may hold something that is not printed yet, or be missing.
    sys.stdout = sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    return given


def _fork_daemon(given: Descriptors, serve: Callable[[int, int], int]) -> str:
    """Fork the daemon; return what tells the supervisor of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = os.fork()
    if number:
        theirs.close()
        os.close(given.report)
        os.set_inheritable(ours.fileno(), True)
        return f"{number}:{ours.detach()}"
    status = FAILED
    try:
        ours.close()
        os.close(given.log)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = serve(given.report, theirs.detach())
    finally:
        _leave(status)


def _leave(status: int) -> NoReturn:
    """End this process here: what is above in the stack belongs to the one that forked it."""
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)
