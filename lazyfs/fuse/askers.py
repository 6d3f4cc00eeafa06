"""Who waits for an answer, and whether he still wants it.

A process whose request was read by a daemon cannot be killed before it is answered, except in
reads of pages, which the kernel itself lets go. It tells the daemon by an INTERRUPT, but libfuse
keeps that to itself. So the processes behind requests that take long are looked at: whom a signal
is about to end gets ``EINTR``, which nobody will see.
"""

import signal
from pathlib import Path

import trio

PATIENCE_S = 0.5
"""A request that is younger is not looked at, so that usual ones cost nothing."""

LOOK_EVERY_S = 0.5

_KILLED = 1 << (signal.SIGKILL - 1)
"""Pending in each thread that is about to end, whichever signal ends it (kernel/signal.c)."""


def is_ending(thread: int) -> bool:
    """Whether a thread is about to end; False if that cannot be told."""
    try:
        text = Path(f"/proc/{thread}/status").read_text(errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        name, _, mask = line.partition(":")
        if name in ("SigPnd", "ShdPnd") and int(mask, 16) & _KILLED:
            return True
    return False


class Askers:
    """The requests under way of which it is known who asked."""

    def __init__(self) -> None:
        self._waiting: dict[trio.CancelScope, tuple[int, float]] = {}
        """Handlers, with the thread that waits for each and since when."""
        self._gone: set[trio.CancelScope] = set()

    def begin(self, handler: trio.CancelScope, thread: int) -> None:
        """``thread`` waits for what runs in ``handler``."""
        self._waiting[handler] = (thread, trio.current_time())

    def end(self, handler: trio.CancelScope) -> bool:
        """It is answered, or was cancelled; whether that was because nobody waits any more."""
        self._waiting.pop(handler, None)
        gone = handler in self._gone
        self._gone.discard(handler)
        return gone

    async def watch(self) -> None:
        """Cancel handlers whose askers are about to end, for as long as this runs."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            old_s = trio.current_time() - PATIENCE_S
            for handler, (thread, since_s) in list(self._waiting.items()):
                if since_s <= old_s and is_ending(thread):
                    self._gone.add(handler)
                    handler.cancel()
