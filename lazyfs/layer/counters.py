"""What a layer counts, for ``lazyfs status`` and for metrics."""

from collections import Counter
from dataclasses import dataclass, field

from lazyfs.histogram import FETCH_BOUNDS_S, Histogram
from lazyfs.layer.failures import cause_of
from lazyfs.profile.recording import LayerTouches


@dataclass(slots=True)
class LayerCounters:
    """Counters of one layer since it was opened; plain attributes, changed between checkpoints."""

    requests: int = 0
    """Range requests sent to the blob's source."""
    fetched_bytes: int = 0
    """Bytes that came back."""
    guessed_bytes: int = 0
    """Of blobs, asked for because readers were likely to want them,"""
    guessed_right_bytes: int = 0
    """and those of them that they did want."""
    read_bytes: int = 0
    """Image bytes handed out, those apart that were at hand:"""
    memory_bytes: int = 0
    """Image bytes handed out at once, from the memory of proven pages."""
    cache_hits: int = 0
    """Reads of a chunk that the store had."""
    cache_misses: int = 0
    """Reads of a chunk that had to be fetched."""
    verification_failures: int = 0
    errors: int = 0
    """Fetches that failed for good."""
    errors_by_cause: Counter[str] = field(default_factory=Counter)
    """The same by ``lazyfs.layer.failures.CAUSES``."""
    first_byte_s: Histogram = field(default_factory=lambda: Histogram(FETCH_BOUNDS_S))
    """How long range requests took until their first byte, tries that failed included."""
    whole_s: Histogram = field(default_factory=lambda: Histogram(FETCH_BOUNDS_S))
    """... and until their last one, for those that came to it."""
    last_error: str | None = None
    notes: list[str] = field(default_factory=list)
    """What a user should know, such as a missing dm-verity tree."""
    touched: LayerTouches | None = None
    """Notes which blocks readers ask for, if somebody wants to know."""

    def failed(self, error: Exception) -> None:
        """Count an error that reached a reader."""
        self.errors += 1
        self.errors_by_cause[cause_of(error)] += 1
        self.last_error = f"{type(error).__name__}: {error}"
