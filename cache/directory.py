"""The store in a folder, for tasks of trio: what has to wait for the disk does so in threads."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import trio

from cache.chunkfiles import ChunkFiles
from cache.freespace import NO_MARK, MinFree
from cache.key import ChunkKey
from cache.store import ChunkPart, StoreStatistics

MAX_WRITERS: Final = 4
"""Threads that may write at once; more would only wait for the disk and hold chunks in memory."""


MAX_READERS: Final = 4
"""Threads that may wait for reads of the disk at once."""

_T = TypeVar("_T")


class DirectoryStore:
    """A ``ChunkStore`` on the local disk that any number of processes may use at once.

        with await DirectoryStore.open(path, limit_bytes=10 << 30) as store: ...

    The limit is that of this object: each process keeps to its own when it stores something.
    ``cache/README.md`` says how the folder is laid out and what is promised.
    """

    def __init__(self, files: ChunkFiles) -> None:
        """Serve an open folder; use ``DirectoryStore.open``."""
        self._files = files
        self._writers = trio.CapacityLimiter(MAX_WRITERS)
        self._readers = trio.CapacityLimiter(MAX_READERS)
        self._busy = 0
        self._closed = False

    @classmethod
    async def open(cls, path: Path, limit_bytes: int | None, min_free: MinFree = NO_MARK) -> Self:
        """Open the store in ``path``, which is made if it is missing.

        Cleans up what killed processes left, and evicts if the store holds more than
        ``limit_bytes`` (None: no limit) or its disk has less than ``min_free`` left.

        Raises:
            CacheOpenError: the folder cannot serve as a store; mount without one.

        Cancelled: before it began, nothing happens; once begun it ends first.
        """
        if limit_bytes is not None and limit_bytes < 0:
            raise ValueError(f"a negative limit of {limit_bytes} bytes")
        files = await trio.to_thread.run_sync(ChunkFiles.open, path, limit_bytes, min_free)
        return cls(files)

    def close(self) -> None:
        """Let go of the folder, when what is in progress has ended; no other call may follow."""
        self._closed = True
        if not self._busy:
            self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def locks_directory(self) -> Path:
        """Where processes that use this store lock what they fetch: for ``Flights``."""
        return self._files.locks_path

    def read(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """See ``ChunkStore.read``."""
        _check(offset, length)
        return self._files.read(key.relative_path, offset, length)

    def read_nowait(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """See ``ChunkStore.read_nowait``."""
        _check(offset, length)
        return self._files.read(key.relative_path, offset, length, wait=False)

    async def load(self, wanted: Sequence[ChunkPart]) -> list[bytes | None]:
        """See ``ChunkStore.load``."""
        work = partial(self._files.read_all, _places(wanted), missed=True)
        return await self._in_thread(work, self._readers)

    async def load_for(
        self,
        wanted: Sequence[ChunkPart],
        work: Callable[[Sequence[bytes]], _T],
        limiter: trio.CapacityLimiter,
    ) -> _T | None:
        """See ``ChunkStore.load_for``."""
        places = _places(wanted)

        def read_and_work() -> _T | None:
            found = [
                data for data in self._files.read_all(places, missed=False) if data is not None
            ]
            return work(found) if len(found) == len(places) else None

        return await self._in_thread(read_and_work, limiter)

    def contains(self, key: ChunkKey) -> bool:
        """See ``ChunkStore.contains``."""
        return self._files.contains(key.relative_path)

    async def put(self, key: ChunkKey, data: bytes) -> None:
        """See ``ChunkStore.put``; an empty chunk is not stored."""
        await self._write(partial(self._files.put, key.relative_path, data))

    async def discard(self, key: ChunkKey) -> None:
        """See ``ChunkStore.discard``."""
        await self._write(partial(self._files.discard, key.relative_path))

    async def relieve(self) -> None:
        """Evict if the disk has less free than it should.

        Raises:
            CacheWriteError: the disk failed.

        Cancelled: as for ``put``.
        """
        await self._write(self._files.relieve)

    def statistics(self) -> StoreStatistics:
        """See ``ChunkStore.statistics``."""
        return self._files.statistics()

    def usage_bytes(self) -> int:
        """What all processes together are charged now, in whole blocks."""
        return self._files.usage_bytes()

    async def _write(self, work: Callable[[], None]) -> None:
        await self._in_thread(work, self._writers)

    async def _in_thread(self, work: Callable[[], _T], limiter: trio.CapacityLimiter) -> _T:
        self._busy += 1
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        finally:
            self._busy -= 1
            if self._closed and not self._busy:
                self._files.close()


def _places(wanted: Sequence[ChunkPart]) -> list[tuple[str, int, int]]:
    for _, offset, length in wanted:
        _check(offset, length)
    return [(key.relative_path, offset, length) for key, offset, length in wanted]


def _check(offset: int, length: int) -> None:
    if offset < 0 or length < 0:
        raise ValueError(f"a range of {length} bytes from {offset}")
