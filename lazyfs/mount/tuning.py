"""What root can set on a mount to make it faster; nothing depends on it.

The kernel reads ahead 128 KiB at a time by default and keeps 12 reads in flight: little
where a read may wait for the network.
"""

import logging
import os
from pathlib import Path

READ_AHEAD_KB = 1024
MAX_BACKGROUND = 64

log = logging.getLogger(__name__)


def tune(device: str) -> None:
    """Let the kernel read further ahead, and more at once, from the mount ``device``."""
    major, minor = (int(part) for part in device.split(":"))
    _write(Path(f"/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KB)
    connection = _kernel_device_number(major, minor)
    _write(Path(f"/sys/fs/fuse/connections/{connection}/max_background"), MAX_BACKGROUND)


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
