"""What a chunk store promises, whatever keeps the chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import trio

from cache.key import ChunkKey


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What happened through one store object since it was opened."""

    hits: int = 0
    """Reads that were answered."""
    misses: int = 0
    """Reads that were not: absent, too short or unreadable."""
    puts: int = 0
    """Chunks written; those that were there already do not count."""
    discards: int = 0
    """Chunks removed because a reader found them rotten."""
    evictions: int = 0
    """Chunks removed to make room."""
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_evicted: int = 0
    """In whole blocks, as charged against the limit."""
    errors: int = 0
    """Failures of the disk or the store, in reads and writes."""


T = TypeVar("T")

ChunkPart: TypeAlias = tuple[ChunkKey, int, int]
"""A chunk, an offset in it, and how many bytes."""


class ChunkStore(Protocol):
    """Keeps chunks by key. What it gives back was verified once and must be verified again."""

    def read(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """Exactly ``length`` bytes at ``offset`` of a chunk; None if absent, shorter or unreadable.

        May wait for the disk: not for an event loop.

        Raises:
            InvalidChunkKeyError.
        """
        ...

    def read_nowait(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """As ``read``, where the answer is at hand: cheaper than a hop to a thread.

        Raises:
            InvalidChunkKeyError.
            BlockingIOError: the disk must be waited for; ``load`` does.
        """
        ...

    async def load(self, wanted: Sequence[ChunkPart]) -> list[bytes | None]:
        """As ``read`` for each part, all in one thread: the disk has them to read together.

        Raises:
            InvalidChunkKeyError.

        Cancelled: before it began, nothing happens; once begun it ends first.
        """
        ...

    async def load_for(
        self,
        wanted: Sequence[ChunkPart],
        work: Callable[[Sequence[bytes]], T],
        limiter: trio.CapacityLimiter,
    ) -> T | None:
        """Do something with parts in the thread that has read them; None unless all are there.

        Args:
            wanted: what to read.
            work: thread-safe.
            limiter: of such threads.

        Raises:
            InvalidChunkKeyError, and what ``work`` raises.

        Cancelled: before it began, nothing happens; once begun it ends first.
        """
        ...

    def contains(self, key: ChunkKey) -> bool:
        """Whether the chunk seems to be there; a following read may still say None.

        Raises:
            InvalidChunkKeyError.
        """
        ...

    async def put(self, key: ChunkKey, data: bytes) -> None:
        """Store a whole chunk, or nothing; storing it again changes nothing.

        Raises:
            InvalidChunkKeyError.
            CacheWriteError: the chunk is not stored; read on without it.

        Cancelled: before it began, nothing is stored; once begun it ends first.
        """
        ...

    async def discard(self, key: ChunkKey) -> None:
        """Remove a chunk that a reader found rotten; no matter if it is gone already.

        Raises:
            InvalidChunkKeyError.
            CacheWriteError: the chunk may still be there.

        Cancelled: as for ``put``.
        """
        ...

    def statistics(self) -> StoreStatistics:
        """Counters since the store was opened."""
        ...

    def usage_bytes(self) -> int:
        """What is charged against the limit now."""
        ...
