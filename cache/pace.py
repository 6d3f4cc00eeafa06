"""How fast the disk answers: whether to wait for it in place, or to let a thread wait.

To let a thread read costs more than twice of what a good disk takes for a small read, but a
disk that is slow or stuck must not stop the event loop. So the disk is timed.
"""

from typing import Final

IN_PLACE_BYTES: Final = 64 << 10
"""Longer reads from the disk are never waited for in place."""

QUICK_S: Final = 0.0005
"""A disk whose small reads take less than this, on average, is waited for."""

AT_HAND_S: Final = 0.00003
"""What comes sooner was in the page cache."""

_WEIGHT: Final = 1 / 8
"""Of the latest read in the average: one that takes 4 ms, and the next ones go to threads."""


class DiskPace:
    """The moving average of small reads from the disk; unknown disks are not waited for."""

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def note(self, length: int, took_s: float) -> None:
        """Remember how long a read of ``length`` bytes took that had to wait."""
        if length <= IN_PLACE_BYTES:
            mean_s = took_s if self._mean_s is None else self._mean_s
            self._mean_s = mean_s + (took_s - mean_s) * _WEIGHT

    def may_wait(self, length: int) -> bool:
        """Whether a read of ``length`` bytes that must wait is over soon."""
        return length <= IN_PLACE_BYTES and self._mean_s is not None and self._mean_s < QUICK_S
