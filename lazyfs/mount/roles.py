"""Which processes live for a mount, as the kernel's locks tell.

The file ``processes`` in the runtime folder has a byte for each role, and who has the role
holds a POSIX lock on it. The kernel drops the lock with the process, whatever ends it, and
names the holder to who asks: no process number is ever guessed or out of date. A process must
not open that file a second time: closing any descriptor of it would drop its lock.

Free of imports that cost memory: the supervisor uses it.
"""

import fcntl
import os
import struct

FILE_NAME = "processes"
SUPERVISOR = 0
DAEMON = 1

_FLOCK = struct.Struct("@hhqqi0q")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, process."""


def hold(path: str, role: int) -> int:
    """Take a role; it ends with the process. Return the descriptor that holds it.

    Raises:
        OSError: another process has the role, or the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, role)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def holder(path: str, role: int) -> int | None:
    """The process that has a role; None if none has. Not for processes that have one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, role, 1, 0)
        kind, _, _, _, process = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return process if kind != fcntl.F_UNLCK and process > 0 else None


def open_holder(path: str, role: int) -> int | None:
    """A descriptor (pidfd) of the process that has a role, to wait for or to signal."""
    process = holder(path, role)
    if process is None:
        return None
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return None
    # Only now it is certain that the number means the process that was found.
    if holder(path, role) == process:
        return descriptor
    os.close(descriptor)
    return None
