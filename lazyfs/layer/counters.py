"""What a layer counts, for ``lazyfs status``."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class LayerCounters:
    """Counters of one layer since it was opened; plain attributes, changed between checkpoints."""

    requests: int = 0
    """Range requests sent to the blob's source."""
    fetched_bytes: int = 0
    """Bytes that came back."""
    read_bytes: int = 0
    """Image bytes handed out."""
    cache_hits: int = 0
    """Reads of a chunk that the store had."""
    cache_misses: int = 0
    """Reads of a chunk that had to be fetched."""
    verification_failures: int = 0
    errors: int = 0
    """Fetches that failed for good."""
    last_error: str | None = None
    notes: list[str] = field(default_factory=list)
    """What a user should know, such as a missing dm-verity tree."""

    def failed(self, error: Exception) -> None:
        """Count an error that reached a reader."""
        self.errors += 1
        self.last_error = f"{type(error).__name__}: {error}"
