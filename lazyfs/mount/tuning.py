"""What root can set on a mount to make it faster; nothing depends on it.

The kernel reads ahead 128 KiB at a time by default and keeps 12 reads in flight: little
where a read may wait for the network.
"""

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from lazyfs.fuse.protocol import MAX_BACKGROUND
from lazyfs.newmount import FileSystem

READ_AHEAD_KB = 1024

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""malloc.h"""
KEPT_BUFFER_BYTES = 4 << 20
"""Larger ones go back to the kernel at once, as ever."""
KEPT_HEAP_BYTES = 16 << 20

log = logging.getLogger(__name__)


def keep_freed_buffers() -> None:
    """Have the C library keep the memory of answers for the next ones.

    It gives memory at the end of its heap back as soon as that is more than twice the largest
    buffer, and each answer of 1 MiB then costs 256 page faults: half its time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in every C library
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BUFFER_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)


def read_further_ahead(device: str) -> None:
    """Let the kernel read further ahead from the mount ``device``, in files opened from now on."""
    _write(Path(f"/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KB)


def raise_max_background(device: str) -> None:
    """Let more reads be in flight on a mount whose beginning was not ours to shape."""
    major, minor = (int(part) for part in device.split(":"))
    connection = _kernel_device_number(major, minor)
    with _fuse_control() as control:
        _write(control / str(connection) / "max_background", MAX_BACKGROUND)


@contextlib.contextmanager
def _fuse_control() -> Iterator[Path]:
    """The fusectl file system: where it belongs, or mounted for us alone, out of sight.

    Only systemd mounts it everywhere; a container or a small system has it nowhere.
    """
    usual = Path("/sys/fs/fuse/connections")
    if not usual.is_dir() or any(usual.iterdir()):
        yield usual
        return
    try:
        with FileSystem("fusectl") as control:
            mount = control.mount(0)
    except OSError:  # an old kernel, or we may not mount
        yield usual
        return
    try:
        yield Path(f"/proc/self/fd/{mount}")
    finally:
        os.close(mount)


def _kernel_device_number(major: int, minor: int) -> int:
    """How fusectl names a connection (``new_encode_dev`` in linux/kdev_t.h)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


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
