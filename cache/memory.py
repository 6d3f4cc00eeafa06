"""Chunks in memory: for a mount without a cache folder, and for tests."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import trio

from cache.counters import StoreCounters
from cache.errors import ChunkTooLargeError
from cache.eviction import charged_bytes
from cache.key import ChunkKey
from cache.store import ChunkPart, StoreStatistics, T


class MemoryStore:
    """A ``ChunkStore`` that ends with the process; same limit arithmetic as on disk.

    Nothing in it awaits, so each operation is atomic for the tasks of one event loop; it is not
    for use from several threads.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        """Hold at most ``limit_bytes`` (None: no limit)."""
        if limit_bytes is not None and limit_bytes < 0:
            raise ValueError(f"a negative limit of {limit_bytes} bytes")
        self._limit_bytes = limit_bytes
        self._chunks: OrderedDict[ChunkKey, bytes] = OrderedDict()
        self._used_bytes = 0
        self._counters = StoreCounters()

    def read(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """See ``ChunkStore.read``."""
        key.check()
        if offset < 0 or length < 0:
            raise ValueError(f"a range of {length} bytes from {offset}")
        data = self._chunks.get(key)
        if data is None or offset + length > len(data):
            self._counters.misses += 1
            return None
        self._chunks.move_to_end(key)
        self._counters.hits += 1
        self._counters.bytes_read += length
        return data[offset : offset + length]

    def read_nowait(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """See ``ChunkStore.read_nowait``."""
        return self.read(key, offset, length)

    async def load(self, wanted: Sequence[ChunkPart]) -> list[bytes | None]:
        """See ``ChunkStore.load``."""
        return [self.read(*part) for part in wanted]

    async def load_for(
        self,
        wanted: Sequence[ChunkPart],
        work: Callable[[Sequence[bytes]], T],
        limiter: trio.CapacityLimiter,
    ) -> T | None:
        """See ``ChunkStore.load_for``."""
        found = [data for data in await self.load(wanted) if data is not None]
        if len(found) < len(wanted):
            return None
        return await trio.to_thread.run_sync(work, found, limiter=limiter)

    def contains(self, key: ChunkKey) -> bool:
        """See ``ChunkStore.contains``."""
        key.check()
        return key in self._chunks

    async def put(self, key: ChunkKey, data: bytes) -> None:
        """See ``ChunkStore.put``; an empty chunk is not stored."""
        key.check()
        known = self._chunks.get(key)
        if not data or (known is not None and len(known) == len(data)):
            return
        charge = charged_bytes(len(data))
        if self._limit_bytes is not None and charge > self._limit_bytes:
            self._counters.errors += 1
            raise ChunkTooLargeError(
                f"chunk of {len(data)} bytes, the store may hold {self._limit_bytes}"
            )
        self._drop(key)
        while self._limit_bytes is not None and self._used_bytes + charge > self._limit_bytes:
            self._counters.bytes_evicted += self._drop(next(iter(self._chunks)))
            self._counters.evictions += 1
        self._chunks[key] = bytes(data)
        self._used_bytes += charge
        self._counters.puts += 1
        self._counters.bytes_written += len(data)

    async def discard(self, key: ChunkKey) -> None:
        """See ``ChunkStore.discard``."""
        key.check()
        if self._drop(key):
            self._counters.discards += 1

    def statistics(self) -> StoreStatistics:
        """See ``ChunkStore.statistics``."""
        return self._counters.snapshot()

    def usage_bytes(self) -> int:
        """See ``ChunkStore.usage_bytes``."""
        return self._used_bytes

    def _drop(self, key: ChunkKey) -> int:
        """Forget a chunk; what it was charged, 0 if it was not there."""
        data = self._chunks.pop(key, None)
        charge = 0 if data is None else charged_bytes(len(data))
        self._used_bytes -= charge
        return charge
