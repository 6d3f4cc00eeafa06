"""What the FUSE side counts for ``lazyfs status``."""

from collections import Counter


class Counters:
    """Requests by operation, bytes given to readers, failures by errno name."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """Failed requests; ordinary answers such as ENOENT are none."""
        self.read_bytes = 0
        self.in_flight = 0

    def as_document(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "operations": dict(self.operations),
            "failures": dict(self.failures),
            "read_bytes": self.read_bytes,
            "in_flight": self.in_flight,
        }
