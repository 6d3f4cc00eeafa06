"""The store in a folder, for tasks of trio: what has to wait for the disk does so in threads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import trio

from cache.chunkfiles import ChunkFiles
from cache.errors import CacheWriteError
from cache.freespace import NO_MARK, MinFree
from cache.key import ChunkKey
from cache.store import ChunkPart, StoreStatistics

MAX_WRITERS: Final = 4
"""Threads that may write at once; more would only wait for the disk and hold chunks in memory."""

TOGETHER_BYTES: Final = 4 << 20
"""What is to be written by one visit to a thread is at most so much, and one chunk."""

MAX_READERS: Final = 4
"""Threads that may wait for reads of the disk at once."""

_T = TypeVar("_T")


class _Puts:
    """Chunks that one thread writes, one after the other."""

    __slots__ = ("chunks", "done", "errors", "length")

    def __init__(self) -> None:
        self.chunks: list[tuple[str, bytes]] = []
        self.length = 0
        self.errors: list[CacheWriteError | None] = []
        """What went wrong with each, once they are ``done``."""
        self.done = trio.Event()

    def add(self, name: str, data: bytes) -> int:
        """Write one more; its number."""
        self.chunks.append((name, data))
        self.length += len(data)
        self.errors.append(CacheWriteError(f"chunk {name} was not written"))
        return len(self.chunks) - 1


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
        self._puts_at_once = trio.Semaphore(MAX_WRITERS)
        self._next_puts: _Puts | None = None
        """Those that nobody writes yet."""
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
        """See ``ChunkStore.put``; an empty chunk is not stored.

        What comes while others wait to be written goes with them: a visit to a thread costs more
        than storing 8 KiB does.
        """
        puts = self._next_puts or _Puts()
        number = puts.add(key.relative_path, data)
        is_first = self._next_puts is None
        self._next_puts = puts if puts.length < TOGETHER_BYTES else None
        with trio.CancelScope(shield=True):  # others may be in one boat with it
            if is_first:
                await self._write_together(puts)
            else:
                await puts.done.wait()
        error = puts.errors[number]
        if error is not None:
            raise error

    async def _write_together(self, puts: _Puts) -> None:
        with self._in_progress():
            try:
                async with self._puts_at_once:  # at least a checkpoint, so that others may join
                    if self._next_puts is puts:
                        self._next_puts = None
                    work = partial(_put_all, self._files, puts.chunks)
                    puts.errors = await trio.to_thread.run_sync(work, limiter=self._writers)
            finally:
                puts.done.set()

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
        with self._in_progress():
            return await trio.to_thread.run_sync(work, limiter=limiter)

    @contextmanager
    def _in_progress(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._closed and not self._busy:
                self._files.close()


def _put_all(
    files: ChunkFiles, chunks: Sequence[tuple[str, bytes]]
) -> list[CacheWriteError | None]:
    """Store several chunks; what went wrong with each."""
    errors: list[CacheWriteError | None] = []
    for name, data in chunks:
        try:
            files.put(name, data)
        except CacheWriteError as error:
            errors.append(error)
        else:
            errors.append(None)
    return errors


def _places(wanted: Sequence[ChunkPart]) -> list[tuple[str, int, int]]:
    for _, offset, length in wanted:
        _check(offset, length)
    return [(key.relative_path, offset, length) for key, offset, length in wanted]


def _check(offset: int, length: int) -> None:
    if offset < 0 or length < 0:
        raise ValueError(f"a range of {length} bytes from {offset}")
