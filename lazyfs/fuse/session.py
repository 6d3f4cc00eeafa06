"""Serving with pyfuse3, which allows one mount per process, and mounting with it where need be.

The process that serves a mount must never touch it: it would wait for itself.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

import pyfuse3

from lazyfs.errors import MountError
from lazyfs.fuse.kernelmount import MountChoice
from lazyfs.fuse.operations import ImageOperations
from lazyfs.fuse.protocol import MAX_BACKGROUND

GRACE_S = 2.0
"""How long requests may still be answered once the end was asked for."""

WAKE_UP_S = 1.0

REQUESTS_AT_ONCE = MAX_BACKGROUND + 1536
"""Requests that are handled at once: many more than reads of pages, so that lookups get through.
The kernel keeps the others. A waiting one costs some 30 KiB of memory."""


@contextlib.contextmanager
def mounted_by_libfuse(
    operations: ImageOperations,
    mountpoint: str,
    choice: MountChoice,
    is_in_place: Callable[[], bool],
) -> Iterator[None]:
    """Mount on ``mountpoint``, and make sure that it is unmounted in the end.

    Such a mount ends with the process; ``lazyfs.fuse.kernelmount`` makes the others.

    Args:
        operations: what answers the requests.
        mountpoint: a directory.
        choice: how to mount.
        is_in_place: asked in the end whether what is on ``mountpoint`` is this mount: it may
            have been detached, and another one made there.

    On leaving, requests that are not answered yet fail with ``ECONNABORTED``; who still
    has a file open gets ``ENOTCONN``. It never waits for them.

    Raises:
        MountError: the mount could not be made; with the reason that libfuse prints.
    """
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, mountpoint, choice.for_libfuse())
        except RuntimeError as error:
            reason = said().strip().replace("\n", "; ") or str(error)
            raise MountError(f"cannot mount on {mountpoint}: {reason}") from error
    try:
        yield
    finally:
        pyfuse3.close(unmount=is_in_place())


async def serve() -> None:
    """Answer requests until the file system is unmounted or the caller cancels.

    Cancelled: what is left to do is for who mounted.
    """
    with _interrupted_reads():
        await pyfuse3.main(max_tasks=REQUESTS_AT_ONCE)


def stop_serving() -> None:
    """Let ``serve`` return once the requests in hand are answered.

    Only while it runs: libfuse crashes when its session is gone.
    """
    pyfuse3.terminate()


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Catch what C code writes to standard error meanwhile; it is the only reason we get."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)

        def said() -> str:
            caught.seek(0)
            return caught.read(4096).decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def _interrupted_reads() -> Iterator[None]:
    """Interrupt system calls of the main thread once a second.

    pyfuse3 waits until the FUSE device is readable and then reads it, blocking, with the
    whole process at a stop. If the one request that was there is withdrawn in between (its
    process was killed), that read waits for the next request, and meanwhile no other request,
    however old, goes on. The interruption makes pyfuse3 wait for readability again.
    """
    previous = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, WAKE_UP_S, WAKE_UP_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
