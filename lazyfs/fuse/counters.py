"""What the FUSE side counts for ``lazyfs status`` and for metrics."""

from collections import Counter

from lazyfs.histogram import READ_BOUNDS_S, Histogram

LATE_S = 1.0
"""A request that has waited for so long is counted as late."""


class Counters:
    """Requests by operation, bytes given to readers, failures by errno name."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """Failed requests; ordinary answers such as ENOENT are none."""
        self.read_bytes = 0
        self.read_s = Histogram(READ_BOUNDS_S)
        """How long reads took, failed ones too."""
        self.began: dict[int, float] = {}
        """The requests in hand, by their numbers: when they came, the oldest first."""
        self.last = 0
        """Number of the latest request. Who handles one counts it in and out himself: a call
        would cost more than the counting."""

    @property
    def in_flight(self) -> int:
        """Requests in hand."""
        return len(self.began)

    def late(self, now_s: float) -> int:
        """Of these, how many have waited for ``LATE_S``; there are as many as the kernel lets."""
        return sum(now_s - began_s >= LATE_S for began_s in self.began.values())

    def oldest_s(self, now_s: float) -> float:
        """How long the oldest of them has waited; 0 without one."""
        return now_s - next(iter(self.began.values()), now_s)

    def as_document(self, now_s: float) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "operations": dict(self.operations),
            "failures": dict(self.failures),
            "read_bytes": self.read_bytes,
            "in_flight": self.in_flight,
            "late": self.late(now_s),
            "oldest_s": round(self.oldest_s(now_s), 3),
        }
