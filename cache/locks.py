"""Locks between processes: flock, which the kernel drops when its holder dies.

An flock belongs to one opening of a file, so these locks also hold between threads of one
process and between two stores that it opened on the same folder. Files are opened anew for each
lock and close on exec: nothing is handed on to a child process by mistake.
"""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FIRST_PAUSE_S: Final = 0.0005
_LONGEST_PAUSE_S: Final = 0.01
_MAX_REPLACED: Final = 16
"""How often a lock file may vanish under its taker before he takes it for held by others."""


def lock_within(descriptor: int, patience_s: float) -> None:
    """Lock an open file exclusively; blocks the thread, so never call it in the event loop.

    A holder that was stopped must not stop us for ever, hence the bound.

    Raises:
        TimeoutError: another held it for ``patience_s`` seconds.
        OSError: the file system failed or has no locks.
    """
    deadline = time.monotonic() + patience_s
    pause = _FIRST_PAUSE_S
    while not try_lock(descriptor):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another process held the lock for {patience_s:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file if that is possible at once.

    Raises:
        OSError: the file system failed or has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class LockFile:
    """A lock that exists as a file only while it is held (or after its holder was killed)."""

    path: Path
    descriptor: int

    @classmethod
    def acquire(cls, path: Path) -> "LockFile | None":
        """Take the lock, or None if another process or opening holds it.

        Its holder unlinks the file before unlocking it, so a taker may find that he locked a file
        that has no name any more, while others lock a new one: he looks, and tries again.

        Raises:
            OSError: the file system failed or has no locks.
        """
        for _ in range(_MAX_REPLACED):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not try_lock(descriptor):
                    break
                if _is_still_named(path, descriptor):
                    lock = cls(path, descriptor)
                    descriptor = -1
                    return lock
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return None

    def release(self) -> None:
        """Unlock; the file goes first, for whoever sees it must find it locked or stale.

        Raises:
            OSError: the file could not be removed; it is unlocked all the same.
        """
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self.descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock file ``path`` just now.

    Raises:
        OSError: the file system failed or has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def _is_still_named(path: Path, descriptor: int) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))
