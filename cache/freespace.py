"""The low-water mark: how much of its disk the store leaves to others.

A limit in bytes does not help where something else fills the disk. So the store also keeps to
what the disk has: below the mark it does not grow, and gives back what was not used for longest.
"""

import os
import time
from typing import Final, NamedTuple

CHECK_INTERVAL_S: Final = 1.0
CHECK_BYTES: Final = 64 << 20
"""The file system is asked again after so long, or after so many bytes were stored."""


class MinFree(NamedTuple):
    """What is to stay free of the disk: the smaller of the two that are given."""

    size_bytes: int | None = None
    percent: float | None = None

    def mark_bytes(self, disk_bytes: int) -> int:
        """What is to stay free of a disk of ``disk_bytes``; 0: there is no mark."""
        marks = [] if self.size_bytes is None else [self.size_bytes]
        if self.percent is not None:
            marks.append(int(disk_bytes * self.percent / 100))
        return min(marks, default=0)


NO_MARK: Final = MinFree()
DEFAULT_MIN_FREE: Final = MinFree(1 << 30, 5.0)
"""On a large disk a gigabyte is enough for others to notice; on a small one 5 % are."""


class FreeSpace:
    """What the disk allows one open store to hold; used under the lock of the store."""

    def __init__(self, root: int, min_free: MinFree) -> None:
        """Look at the disk of the folder that is open as ``root``."""
        self._root = root
        self._min_free = min_free
        self._allowed_bytes: int | None = None
        self._asked_s = 0.0
        self._stored_bytes = CHECK_BYTES

    def is_short(self) -> bool:
        """Whether less is free now than should be; then ``allowed_bytes`` looks again, too.

        Raises:
            OSError: the disk failed.
        """
        excess = self._excess_bytes()
        if excess is None or excess >= 0:
            return False
        self._stored_bytes = CHECK_BYTES
        return True

    def allowed_bytes(self, used_bytes: int, incoming_bytes: int) -> int | None:
        """How much the store may hold, of which it holds ``used_bytes`` now; None: no limit.

        Raises:
            OSError: the disk failed.
        """
        now_s = time.monotonic()
        self._stored_bytes += incoming_bytes
        if self._stored_bytes >= CHECK_BYTES or now_s - self._asked_s >= CHECK_INTERVAL_S:
            excess = self._excess_bytes()
            self._allowed_bytes = None if excess is None else max(0, used_bytes + excess)
            self._asked_s = now_s
            self._stored_bytes = 0
        return self._allowed_bytes

    def _excess_bytes(self) -> int | None:
        """What is free above the mark, negative below it; None: there is no mark."""
        if self._min_free == NO_MARK:
            return None
        found = os.fstatvfs(self._root)
        if not found.f_blocks:  # a file system that does not tell
            return None
        mark = self._min_free.mark_bytes(found.f_blocks * found.f_frsize)
        return found.f_bavail * found.f_frsize - mark if mark else None
