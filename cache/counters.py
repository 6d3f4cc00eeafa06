"""The counters behind ``StoreStatistics``, for those who implement a store."""

from dataclasses import asdict, dataclass

from cache.store import StoreStatistics


@dataclass(slots=True)
class StoreCounters:
    """Field for field as in ``StoreStatistics``, but counting."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    discards: int = 0
    evictions: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_evicted: int = 0
    errors: int = 0

    def snapshot(self) -> StoreStatistics:
        """The counters as they are now."""
        return StoreStatistics(**asdict(self))
