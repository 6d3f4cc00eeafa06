"""What root can set on a mount to make it faster; nothing depends on it.

The kernel reads ahead 128 KiB at a time by default: little where a read may wait for the network.
"""

import contextlib
import ctypes
import logging
import os
import resource
import sys
from pathlib import Path

READ_AHEAD_KB = 1024

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""malloc.h"""
KEPT_BUFFER_BYTES = 4 << 20
"""Larger ones go back to the kernel at once, as ever."""
KEPT_HEAP_BYTES = 8 << 20

SWITCH_AFTER_S = 0.0005
"""So long a thread keeps the interpreter's lock that another one wants; by default 5 ms."""

log = logging.getLogger(__name__)


def tune_process() -> None:
    """What each process that serves a mount begins with."""
    raise_file_limit()
    tune_allocator()
    hand_over_sooner()


def tune_allocator() -> None:
    """Have the C library keep the memory of answers for the next ones.

    It gives memory at the end of its heap back as soon as that is more than twice the largest
    buffer, and each answer of 1 MiB then costs 256 page faults: half its time.

    And have all threads share one heap. Each thread that hashes or decompresses would get one of
    its own, in which what is kept for long lies between the holes of what came and went.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in every C library
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BUFFER_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)
        libc.mallopt(M_ARENA_MAX, 1)


def hand_over_sooner() -> None:
    """Let the event loop have the interpreter's lock soon while threads hash.

    These give it back for each block, and have taken it again before the loop's thread has woken
    up: an answer that is ready would wait until all of the next one is hashed.
    """
    sys.setswitchinterval(SWITCH_AFTER_S)


def give_back_freed_memory() -> None:
    """Give freed pages back to the kernel, also those between others that are in use.

    It takes half a millisecond at most for 50 MiB.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # not in every C library
        libc.malloc_trim(0)


def read_further_ahead(device: str) -> None:
    """Let the kernel read further ahead from the mount ``device``, in files opened from now on."""
    _write(Path(f"/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KB)


def _write(path: Path, value: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        log.debug("cannot set %s to %d: %s", path, value, error)
    else:
        log.debug("set %s to %d", path, value)


def raise_file_limit() -> None:
    """Use as many open files as the system allows: the cache may want many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
