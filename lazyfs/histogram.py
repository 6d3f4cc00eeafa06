"""Counts durations by size, cheaply enough to be done for every read."""

from bisect import bisect_left
from collections.abc import Sequence

READ_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)
"""For what is in memory, on the disk, or somewhere else."""

FETCH_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""For what comes over a network."""


class Histogram:
    """How many values lie up to each bound, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Count by rising ``bounds``; what is greater than all of them has a count of its own."""
        self._bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """How many lie in each interval."""
        self.total = 0.0
        """Sum of all values."""

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def add(self, other: "Histogram") -> None:
        """Take in what another one with the same bounds has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulative(self) -> list[tuple[str, int]]:
        """Bounds with the number of values up to each, the last bound being ``+Inf``."""
        found = []
        count = 0
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for bound, more in zip(bounds, self.counts, strict=True):
            count += more
            found.append((bound, count))
        return found
