"""Gets pieces of a blob into the store, each once, however many readers want it.

A piece is whatever is proven as a unit on arrival: a chunk's frame, a stretch of hash
blocks. ``PieceFetcher`` knows where the piece lies in the blob, the key under which it is
stored, and how arriving bytes become what is stored (``Piece.take_in``: check, decompress).

Neighbouring missing pieces become one range request. A fetch belongs to the layer and not
to the reader that began it: when a reader gives up, the fetch goes on for the others and
for the next try. Memory held: at most ``RUN_BYTES`` and one piece per request under way.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from cache.errors import CacheError
from cache.flights import Flight, Flights
from cache.key import ChunkKey
from cache.store import ChunkStore
from lazyfs.errors import (
    DeadlineExceededError,
    LazyfsError,
    SourceUnavailableError,
    VerificationError,
)
from lazyfs.interfaces import BlobSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.model import ByteRange

RUN_BYTES = 8 << 20
"""Neighbouring pieces are fetched together up to about this many bytes."""

SLOWEST_BYTES_PER_S = 16 << 10
"""A fetch that is slower than this, over its whole length, is given up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """One unit of a blob that is fetched, checked and stored as a whole."""

    key: ChunkKey
    where: ByteRange
    """In the blob."""
    what: str
    """For a log line: ``chunk 7``."""
    take_in: Callable[[bytes], bytes]
    """From the bytes of ``where`` to the bytes to store; pure, slow, run in a thread.

    Raises ``LazyfsError`` where the bytes are not the promised ones.
    """


@dataclass(slots=True)
class Engine:
    """What all layers of a mount share for fetching."""

    nursery: trio.Nursery
    store: ChunkStore
    flights: Flights
    timeout_s: float
    """How long a fetch may stall; 0: for ever."""
    requests: trio.CapacityLimiter
    """Requests under way at once."""
    workers: trio.CapacityLimiter
    """Threads that check and decompress."""
    store_failed: bool = False
    """Whether the last write to the store failed (logged once, until it works again)."""


class PieceFetcher:
    """Pieces of one blob, through the store."""

    def __init__(
        self, engine: Engine, source: BlobSource, counters: LayerCounters, name: str
    ) -> None:
        """Fetch from ``source``; ``name`` says in log lines which image and layer it is."""
        self._engine = engine
        self._source = source
        self._counters = counters
        self._name = name

    async def read(self, wanted: Sequence[tuple[Piece, int, int]]) -> list[bytes]:
        """Bytes of stored pieces, which are fetched first where they are missing.

        Args:
            wanted: pieces with offset and length in what is stored of each.

        Returns:
            The bytes, in the same order. They were proven when they arrived, but may come
            from the disk: the caller proves them again.

        Raises:
            VerificationError, ImageFormatError: a piece is not what was promised.
            SourceUnavailableError: a piece cannot be had.

        Cancelled: fetches that were begun go on.
        """
        read = self._engine.store.read
        found = [read(piece.key, offset, length) for piece, offset, length in wanted]
        missing = [index for index, data in enumerate(found) if data is None]
        self._counters.cache_hits += len(wanted) - len(missing)
        if not missing:
            return [data for data in found if data is not None]
        self._counters.cache_misses += len(missing)
        self.begin(wanted[index][0] for index in missing)
        for index in missing:
            found[index] = await self._arrival(*wanted[index])
        return [data for data in found if data is not None]

    def begin(self, pieces: Iterable[Piece]) -> None:
        """Begin to fetch missing pieces that nobody is fetching yet; returns at once."""
        run: list[tuple[Piece, Flight]] = []
        for piece in sorted(pieces, key=lambda piece: piece.where):
            flight = self._engine.flights.claim(piece.key)
            if flight is None:
                continue
            if run and (
                run[-1][0].where.end != piece.where.offset
                or piece.where.end - run[0][0].where.offset > RUN_BYTES
            ):
                self._engine.nursery.start_soon(self._fetch_run, run)
                run = []
            run.append((piece, flight))
        if run:
            self._engine.nursery.start_soon(self._fetch_run, run)

    def want(self, pieces: Iterable[Piece]) -> None:
        """Begin to fetch those of ``pieces`` that the store lacks; returns at once."""
        self.begin(piece for piece in pieces if not self._engine.store.contains(piece.key))

    async def discard(self, piece: Piece) -> None:
        """Drop a stored piece that turned out to be rotten."""
        try:
            await self._engine.store.discard(piece.key)
        except CacheError as error:
            log.warning(
                "%s: %s: rotten in the cache, and cannot be removed: %s",
                self._name,
                piece.what,
                error,
            )

    async def _arrival(self, piece: Piece, offset: int, length: int) -> bytes:
        """The bytes of a piece that is being fetched, by us or by another process."""
        while True:
            data = await self._engine.flights.wait(piece.key)
            if data is not None:
                return data[offset : offset + length]
            stored = self._engine.store.read(piece.key, offset, length)
            if stored is not None:
                return stored
            self.begin([piece])

    async def _fetch_run(self, run: list[tuple[Piece, Flight]]) -> None:
        """Fetch neighbouring pieces by one request; every flight ends here, well or not."""
        pending = dict(enumerate(run))
        error: LazyfsError | None = None
        try:
            async with self._engine.requests:
                error = await self._receive_in_time(pending)
        except Exception as bug:
            log.exception("%s: internal error while fetching", self._name)
            error = SourceUnavailableError(f"internal error: {bug}")
        finally:
            for piece, flight in pending.values():
                with flight:
                    if error is None:  # cancelled: the mount is ending, and nobody may wait on
                        flight.fail(SourceUnavailableError("the mount is ending"))
                    else:
                        self._fail(piece, flight, error)

    async def _receive_in_time(
        self, pending: dict[int, tuple[Piece, Flight]]
    ) -> LazyfsError | None:
        length = sum(piece.where.length for piece, _ in pending.values())
        timeout_s = self._engine.timeout_s
        deadline_s = timeout_s + length / SLOWEST_BYTES_PER_S if timeout_s else math.inf
        with trio.move_on_after(deadline_s):
            return await self._receive(pending)
        return DeadlineExceededError(
            f"{self._source.origin}: {length} bytes did not come within {deadline_s:.0f} s"
        )

    async def _receive(self, pending: dict[int, tuple[Piece, Flight]]) -> LazyfsError | None:
        """Stream the pieces in; those taken in leave ``pending``."""
        run = list(pending.items())
        where = ByteRange(run[0][1][0].where.offset, 0)
        where = ByteRange(where.offset, run[-1][1][0].where.end - where.offset)
        async with trio.open_nursery() as nursery:
            try:
                async with self._source.stream(where) as stream:
                    lengths = [piece.where.length for _, (piece, _) in run]
                    index = 0
                    async for data in cut(stream, lengths):
                        number, (piece, flight) = run[index]
                        nursery.start_soon(self._land, pending, number, piece, flight, data)
                        index += 1
            except SourceUnavailableError as error:
                return error
        return None

    async def _land(
        self,
        pending: dict[int, tuple[Piece, Flight]],
        number: int,
        piece: Piece,
        flight: Flight,
        data: bytes,
    ) -> None:
        """Check, hand out and store one piece; on a mismatch ask once more."""
        del pending[number]
        with flight:
            try:
                stored = await self._take_in(piece, data)
            except LazyfsError as error:
                self._fail(piece, flight, error)
            else:
                flight.land(stored)
                await self._store(piece, stored)

    async def _take_in(self, piece: Piece, data: bytes) -> bytes:
        try:
            return await self._in_thread(piece, data)
        except VerificationError as error:
            self._counters.verification_failures += 1
            self._log_failure("verification failed, asking once more", piece, error)
        data = await self._source.fetch(piece.where)
        try:
            return await self._in_thread(piece, data)
        except VerificationError:
            self._counters.verification_failures += 1
            raise

    async def _in_thread(self, piece: Piece, data: bytes) -> bytes:
        return await trio.to_thread.run_sync(piece.take_in, data, limiter=self._engine.workers)

    async def _store(self, piece: Piece, data: bytes) -> None:
        """Store a piece; without a working cache the readers still get it."""
        try:
            await self._engine.store.put(piece.key, data)
        except CacheError as error:
            if not self._engine.store_failed:
                log.warning("the cache cannot be written, reading on without it: %s", error)
            self._engine.store_failed = True
        else:
            self._engine.store_failed = False

    def _fail(self, piece: Piece, flight: Flight, error: LazyfsError) -> None:
        self._counters.failed(error)
        self._log_failure("cannot be read", piece, error)
        flight.fail(error)

    def _log_failure(self, how: str, piece: Piece, error: LazyfsError) -> None:
        log.error("%s: %s from %s: %s: %s", self._name, piece.what, self._source.origin, how, error)


async def cut(stream: AsyncIterator[bytes], lengths: Sequence[int]) -> AsyncIterator[bytes]:
    """Cut a stream into pieces of the given lengths.

    Raises:
        SourceUnavailableError: the stream ends early.
    """
    parts: list[bytes] = []
    have = 0
    queue = iter(lengths)
    length = next(queue, None)
    async for data in stream:
        parts.append(data)
        have += len(data)
        if length is None or have < length:
            continue
        joined = memoryview(b"".join(parts))
        start = 0
        while length is not None and have - start >= length:
            yield bytes(joined[start : start + length])
            start += length
            length = next(queue, None)
        parts = [bytes(joined[start:])] if start < have else []
        have -= start
    if length is not None:
        raise SourceUnavailableError(f"the stream ended {length - have} bytes early")
