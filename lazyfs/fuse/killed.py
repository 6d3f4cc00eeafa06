"""Whether who waits for an answer is being killed.

A process whose request was read by a daemon cannot be killed before it is answered, except in
reads of pages, which the kernel itself lets go. It tells the daemon of any signal by an INTERRUPT,
once for a request. Most signals kill nobody, and a program is not prepared for ``EINTR`` from a
file on disk; so only whom a signal is about to end gets it, and nobody will see it.
"""

import signal
from pathlib import Path

LOOK_EVERY_S = 0.5
"""How often interrupted requests are looked at: the signal that kills may be a later one."""

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
