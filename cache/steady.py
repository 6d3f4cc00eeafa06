"""A store that goes on when its disk does not: in memory meanwhile, on disk again when it can.

A cache is a help and no condition: whatever becomes of its folder, a read ends well if the
registry answers. While the disk is of no use, a little memory spares readers of one chunk to
fetch it again and again. One line is logged when that begins and one when it ends.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from cache.directory import DirectoryStore
from cache.errors import CacheError, CacheWriteError, ChunkTooLargeError
from cache.flights import Flights
from cache.freespace import NO_MARK, MinFree
from cache.key import ChunkKey
from cache.memory import MemoryStore
from cache.store import ChunkPart, StoreStatistics, T

MEMORY_BYTES: Final = 64 << 20
"""Chunks kept in memory while the disk is of no use."""

LOOK_INTERVAL_S: Final = 2.0
"""How often it is looked whether the disk is short of space, or well again."""

MAX_ROTTEN: Final = 4096
"""Rotten chunks that a sick disk cannot remove and that are not to be read again."""

_READING_ON: Final = "the cache cannot be written, reading on without it"
_PROBE: Final = ChunkKey("sha256", "0" * 64, "probe")
_PROBE_BYTES: Final = 4096

log = logging.getLogger(__name__)


class SteadyStore:
    """A ``ChunkStore`` in a folder that may fail, vanish and come back while it is used."""

    def __init__(self, path: Path, limit_bytes: int | None, min_free: MinFree) -> None:
        """Describe the store; use ``SteadyStore.open``."""
        self.path = path.absolute()  # a daemon changes its folder
        self.flights = Flights(None)
        """One fetch per chunk, shared with other processes while the folder is of use."""
        self.problem: str | None = None
        """Why the folder is of no use now."""
        self.problem_since_s: float | None = None
        """Seconds since the epoch."""
        self._limit_bytes = limit_bytes
        self._min_free = min_free
        self._disk: DirectoryStore | None = None
        self._memory = MemoryStore(MEMORY_BYTES)
        self._rotten: set[ChunkKey] = set()
        self._probe_bytes = _PROBE_BYTES

    @classmethod
    async def open(cls, path: Path, limit_bytes: int | None, min_free: MinFree = NO_MARK) -> Self:
        """Open the store, in whatever state its folder is; ``tend`` then looks after it.

        Args:
            path: of the folder.
            limit_bytes: what it may hold; None: no limit.
            min_free: what its disk should keep free.

        Cancelled: as for ``DirectoryStore.open``.
        """
        store = cls(path, limit_bytes, min_free)
        try:
            store._use(await DirectoryStore.open(store.path, limit_bytes, min_free))
        except CacheError as error:
            store._give_up(error, "mounting without a cache on disk")
        return store

    def close(self) -> None:
        """Let go of the folder; no other call may follow."""
        self._use(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def tend(self) -> None:
        """Relieve a disk that is short of space, use one again that is well; ends cancelled."""
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            await self.look()

    def read(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """See ``ChunkStore.read``."""
        data = None
        if self._disk is not None and key not in self._rotten:
            data = self._disk.read(key, offset, length)
        if data is None and self.problem is not None:
            return self._memory.read(key, offset, length)
        return data

    def read_nowait(self, key: ChunkKey, offset: int, length: int) -> bytes | None:
        """See ``ChunkStore.read_nowait``."""
        data = None
        if self._disk is not None and key not in self._rotten:
            data = self._disk.read_nowait(key, offset, length)
        if data is None and self.problem is not None:
            return self._memory.read(key, offset, length)
        return data

    async def load(self, wanted: Sequence[ChunkPart]) -> list[bytes | None]:
        """See ``ChunkStore.load``."""
        found: list[bytes | None] = [None] * len(wanted)
        if self._disk is not None:
            sound = [index for index, part in enumerate(wanted) if part[0] not in self._rotten]
            loaded = await self._disk.load([wanted[index] for index in sound]) if sound else []
            for index, data in zip(sound, loaded, strict=True):
                found[index] = data
        if self.problem is not None:
            for index, data in enumerate(found):
                if data is None:
                    found[index] = self._memory.read(*wanted[index])
        return found

    async def load_for(
        self,
        wanted: Sequence[ChunkPart],
        work: Callable[[Sequence[bytes]], T],
        limiter: trio.CapacityLimiter,
    ) -> T | None:
        """See ``ChunkStore.load_for``; what is partly in memory is left to ``load``."""
        done = None
        if self._disk is not None and self._rotten.isdisjoint(key for key, _, _ in wanted):
            done = await self._disk.load_for(wanted, work, limiter)
        if done is None and self.problem is not None:
            return await self._memory.load_for(wanted, work, limiter)
        return done

    def contains(self, key: ChunkKey) -> bool:
        """See ``ChunkStore.contains``."""
        if self.problem is not None and self._memory.contains(key):
            return True
        return self._disk is not None and key not in self._rotten and self._disk.contains(key)

    async def put(self, key: ChunkKey, data: bytes) -> None:
        """See ``ChunkStore.put``: on disk if it is well, else in memory."""
        disk = self._disk
        if disk is not None and self.problem is None:
            try:
                await disk.put(key, data)
            except ChunkTooLargeError:
                raise
            except CacheWriteError as error:
                self._probe_bytes = max(self._probe_bytes, len(data))
                self._give_up(error, _READING_ON)
            else:
                return
        await self._memory.put(key, data)

    async def discard(self, key: ChunkKey) -> None:
        """See ``ChunkStore.discard``."""
        await self._memory.discard(key)
        if self._disk is None:
            return
        try:
            await self._disk.discard(key)
        except CacheWriteError as error:
            if len(self._rotten) < MAX_ROTTEN:
                self._rotten.add(key)
            self._give_up(error, _READING_ON)

    def statistics(self) -> StoreStatistics:
        """See ``ChunkStore.statistics``: of the disk, since it was opened last."""
        return (self._disk or self._memory).statistics()

    def usage_bytes(self) -> int:
        """See ``ChunkStore.usage_bytes``."""
        return (self._disk or self._memory).usage_bytes()

    async def look(self) -> None:
        """Relieve a disk that is short of space, or use one again that is well again."""
        if self.problem is not None:
            await self._recover()
        elif self._disk is not None:
            try:
                await self._disk.relieve()
            except CacheWriteError as error:
                self._give_up(error, _READING_ON)

    async def _recover(self) -> None:
        """Try the folder anew, by its path, with as much as it failed on."""
        try:
            disk = await DirectoryStore.open(self.path, self._limit_bytes, self._min_free)
        except CacheError as error:
            self.problem = str(error)
            return
        try:
            await disk.put(_PROBE, bytes(self._probe_bytes))
            await disk.discard(_PROBE)
        except CacheError as error:
            disk.close()
            self.problem = str(error)
            return
        except BaseException:
            disk.close()
            raise
        self._use(disk)
        self.problem = self.problem_since_s = None
        self._probe_bytes = _PROBE_BYTES
        self._rotten.clear()
        self._memory = MemoryStore(MEMORY_BYTES)
        extra = {"event": "cache_recovered"}
        log.warning("the cache in %s works again", self.path, extra=extra)

    def _use(self, disk: DirectoryStore | None) -> None:
        """Work on ``disk``, and no more on the one before."""
        before, self._disk = self._disk, disk
        self.flights.share(None if disk is None else disk.locks_directory)
        if before is not None:
            before.close()

    def _give_up(self, error: CacheError, what: str) -> None:
        """Do without the disk until it is well; what it has is still read."""
        if self.problem is None:
            log.warning("%s: %s", what, error, extra={"event": "cache_failing"})
            self.problem_since_s = time.time()
        self.problem = str(error)
