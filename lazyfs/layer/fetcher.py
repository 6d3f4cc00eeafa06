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
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import aclosing, nullcontext
from typing import TypeVar

import trio

from cache.errors import CacheError
from cache.flights import Flight
from cache.key import ChunkKey
from lazyfs.errors import (
    DeadlineExceededError,
    ImageFormatError,
    LazyfsError,
    SourceUnavailableError,
    VerificationError,
)
from lazyfs.interfaces import BlobSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.engine import Engine
from lazyfs.layer.line import Line
from lazyfs.layer.outages import Outages
from lazyfs.layer.piece import Piece, as_it_is, cut
from lazyfs.layer.runs import (
    Fetch,
    Limits,
    Passing,
    Queue,
    Run,
    grouped,
    keys_of,
    length_of,
    ranges_of,
)
from lazyfs.layer.turns import Answer, Turn
from lazyfs.model import ByteRange
from registry.retry import ask_again

RUN_BYTES = 8 << 20
"""Neighbouring pieces are fetched together up to about this many bytes."""

REQUESTS_PER_LAYER = 16
"""Requests under way for one layer: fewer than for all, so that a layer whose blob does not come
leaves some to the others."""

SLOWEST_BYTES_PER_S = 16 << 10
"""A fetch that is slower than this, over its whole length, is given up."""

RANGE_BYTES = 128
"""What another range of a request costs: a shorter gap comes along."""

_ROTTEN = "rotten in the cache or sent wrong, fetching it again"

T = TypeVar("T")

log = logging.getLogger(__name__)


def _nothing_between(gap: ByteRange) -> Sequence[Piece]:
    """Nothing is known of gaps."""
    return ()


class PieceFetcher:
    """Pieces of one blob, through the store."""

    def __init__(
        self,
        engine: Engine,
        source: BlobSource,
        counters: LayerCounters,
        name: str,
    ) -> None:
        """Fetch from ``source``; ``name`` says in log lines which image and layer it is."""
        self._engine = engine
        self._source = source
        self._counters = counters
        self._name = name
        self._requests = trio.CapacityLimiter(REQUESTS_PER_LAYER)
        self._outages = Outages(engine, source, name)
        self.between: Callable[[ByteRange], Sequence[Piece]] = _nothing_between
        """The pieces that fill a range of the blob exactly; none if there are no such."""
        self.coming: Container[ChunkKey] = ()
        """Pieces that come anyway, if only later."""
        self._queue = Queue()
        """What nobody waited for when its fetch was begun, and whose turn has not come."""

    @property
    def line(self) -> Line:
        """What is known of the way to the source."""
        return self._engine.turns.line

    @property
    def ranges_at_once(self) -> int:
        """See ``BlobSource.ranges_at_once``."""
        return self._source.ranges_at_once

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
        self._engine.turns.wanted(wanted)
        found = await self._stored(wanted)
        missing = [index for index, data in enumerate(found) if data is None]
        self._counters.cache_hits += len(wanted) - len(missing)
        if not missing:
            return [data for data in found if data is not None]
        self._counters.cache_misses += len(missing)
        surprised = self._is_surprise(wanted[index][0].key for index in missing)
        self.begin(wanted[index][0] for index in missing)
        self._hurry(wanted[index][0] for index in missing)
        # Held from the start: a flight may end before its turn comes, and the store lose the piece.
        flights = [self._engine.flights.flying(wanted[index][0].key) for index in missing]
        with self._engine.turns.surprised() if surprised else nullcontext():
            for index, flight in zip(missing, flights, strict=True):
                found[index] = await self._arrival(flight, *wanted[index])
        return [data for data in found if data is not None]

    def _is_surprise(self, missing: Iterable[ChunkKey]) -> bool:
        """Whether something is missing that is not on its way, and would not come later either."""
        flying = self._engine.flights.flying
        return any(flying(key) is None and key not in self.coming for key in missing)

    def read_nowait(self, wanted: Sequence[tuple[Piece, int, int]]) -> list[bytes] | None:
        """As ``read`` where all of it is at hand; else None."""
        found = []
        for piece, offset, length in reversed(wanted):  # the end is what is not at hand, if any is
            try:
                data = self._engine.store.read_nowait(piece.key, offset, length)
            except BlockingIOError:
                return None
            if data is None:
                return None
            found.append(data)
        self._engine.turns.wanted(wanted)
        self._counters.cache_hits += len(wanted)
        return found[::-1]

    async def prove(
        self, wanted: Sequence[tuple[Piece, int, int]], work: Callable[[Sequence[bytes]], T]
    ) -> T | None:
        """What ``work`` makes of bytes of stored pieces, in the thread that reads them.

        Returns:
            None if the store lacks one of them.
        """
        store = self._engine.store
        parts = [(piece.key, offset, length) for piece, offset, length in wanted]
        result = await store.load_for(parts, work, self._engine.proving_readers)
        if result is not None:
            self._engine.turns.wanted(wanted)
            self._counters.cache_hits += len(wanted)
        return result

    def has(self, pieces: Iterable[Piece]) -> bool:
        """Whether the store seems to have pieces."""
        return all(self._engine.store.contains(piece.key) for piece in pieces)

    async def _stored(self, wanted: Sequence[tuple[Piece, int, int]]) -> list[bytes | None]:
        """What the store has, None where it has nothing.

        On return there was no checkpoint since what is missing was found missing.
        """
        store = self._engine.store
        found: list[bytes | None] = [None] * len(wanted)
        waited: set[int] = set()
        """Those that were waited for: if that was in vain, the disk cannot read them."""
        while True:
            on_disk = []
            for index, (piece, offset, length) in enumerate(wanted):
                if found[index] is None:
                    try:
                        found[index] = store.read_nowait(piece.key, offset, length)
                    except BlockingIOError:
                        if index not in waited:
                            on_disk.append((index, (piece.key, offset, length)))
            if not on_disk:
                return found
            loaded = await store.load([part for _, part in on_disk])
            for (index, _), data in zip(on_disk, loaded, strict=True):
                waited.add(index)
                found[index] = data

    def begin(
        self,
        pieces: Iterable[Piece],
        *,
        background: bool = False,
        late: bool = False,
        gap_bytes: int = 0,
        apart: bool = False,
    ) -> None:
        """Begin to fetch missing pieces that nobody is fetching yet; returns at once.

        Args:
            pieces: neighbours become one request, in the order of the blob.
            background: nobody waits for them; as ``apart``, and they wait for their turn.
            late: if so, how: see ``Turns.line_up``.
            gap_bytes: of gaps that come along, at most; in the background, those that the line
                carries sooner than another request.
            apart: where that can be, others become one request as well, in the order of
                ``pieces``, without gaps.
        """
        limits = Limits(RUN_BYTES, gap_bytes)
        if background:
            limits = Limits(self.line.run_bytes, self.line.gap_bytes)
        most = self._source.ranges_at_once if background or apart else 1
        if most > 1:
            limits = Limits(limits.run_bytes, RANGE_BYTES, most)
        else:
            pieces = sorted(pieces, key=lambda piece: piece.where)
        for fetches in grouped(self._claimed(pieces), limits):
            run: Run = []
            for fetch in fetches:
                gap = limits.bridged(run[-1], fetch) if run else None
                if gap is not None and gap.length:
                    run += self._bridge(gap)
                run.append(fetch)
            self._start(run, background=background, late=late)

    def _claimed(self, pieces: Iterable[Piece]) -> Iterator[Fetch]:
        """Those that nobody is fetching yet."""
        for piece in pieces:
            flight = self._engine.flights.claim(piece.key)
            if flight is not None:
                yield Fetch(piece, flight)

    def _bridge(self, gap: ByteRange) -> list[Fetch | Passing]:
        """What is in a gap: chunks are kept where the store lacks them."""
        bridge: list[Fetch | Passing] = []
        for piece in self.between(gap):
            stored = self._engine.store.contains(piece.key)
            flight = None if stored else self._engine.flights.claim(piece.key)
            bridge.append(Passing(piece.where) if flight is None else Fetch(piece, flight))
        return bridge or [Passing(gap)]

    def _start(self, run: Run, *, background: bool, late: bool = False) -> None:
        turn: Turn | None = None
        if background:
            turn = self._engine.turns.line_up(length_of(run), late=late)
            self._queue.add(run, turn)
            if late:
                self._engine.turns.brings(keys_of(run))
        else:
            self._engine.turns.asked(length_of(run))
        self._engine.nursery.start_soon(self._fetch_run, run, turn)

    def _hurry(self, pieces: Iterable[Piece]) -> None:
        """Somebody waits for pieces now: take them out of what waits for its turn."""
        for are_wanted, part, turn in self._queue.taken_apart(pieces):
            self._start(part, background=not are_wanted, late=turn.late)

    def want(
        self,
        pieces: Iterable[Piece],
        *,
        background: bool = False,
        gap_bytes: int = 0,
        apart: bool = False,
    ) -> None:
        """Begin to fetch those of ``pieces`` that the store lacks, as by ``begin``."""
        missing = [piece for piece in pieces if not self._engine.store.contains(piece.key)]
        self.begin(missing, background=background, gap_bytes=gap_bytes, apart=apart)
        if not background:
            self._hurry(missing)

    async def have(self, pieces: Sequence[Piece]) -> None:
        """Fetch those of ``pieces`` that the store lacks, in the background.

        Raises:
            As for ``read``.

        Cancelled: as for ``read``.
        """
        missing = [piece for piece in pieces if not self._engine.store.contains(piece.key)]
        self.begin(missing, background=True, late=True)
        flights = [self._engine.flights.flying(piece.key) for piece in missing]
        for piece, flight in zip(missing, flights, strict=True):
            await self._arrival(flight, piece, 0, 0)
        await trio.lowlevel.checkpoint()

    async def renew(self, piece: Piece, why: VerificationError) -> bytes:
        """Replace a stored piece that does not stand the proof; once, however many found out.

        Args:
            piece: what to fetch again.
            why: what was wrong with the stored bytes.

        Returns:
            All bytes to store of the piece, as they came.

        Raises:
            As for ``read``.

        Cancelled: as for ``read``.
        """
        flights = self._engine.flights
        while True:
            flight = flights.claim(piece.key)
            if flight is not None:
                self._counters.verification_failures += 1
                self._outages.report(_ROTTEN, piece, why, "chunk_rotten")
                self._start([Fetch(piece, flight, rotten=True)], background=False)
            self._hurry([piece])
            flight = flights.flying(piece.key)
            data = await (flights.wait(piece.key) if flight is None else flight.outcome())
            if data is not None:
                return data

    async def _arrival(
        self, flight: Flight | None, piece: Piece, offset: int, length: int
    ) -> bytes:
        """Bytes of a piece that is being fetched: by ``flight`` or by another process.

        When the time of a flight is over that is older than this read, the read has some left: it
        gets another one.
        """
        flights = self._engine.flights
        end = trio.current_time() + self._engine.timeout_s
        while True:
            try:
                data = await (flights.wait(piece.key) if flight is None else flight.outcome())
            except DeadlineExceededError:
                if trio.current_time() >= end:
                    raise
                data = None
            if data is not None:
                return data[offset : offset + length]
            (stored,) = await self._stored([(piece, offset, length)])
            if stored is not None:
                return stored
            self.begin([piece])
            self._hurry([piece])
            flight = flights.flying(piece.key)

    async def _fetch_run(self, run: Run, turn: Turn | None) -> None:
        """Fetch pieces by one request, after ``turn``; every flight ends here, well or not."""
        pending: dict[ChunkKey, Fetch] = {}
        error: LazyfsError | None = None
        try:
            try:
                if turn is not None:
                    await self._turn(run, turn)
            finally:  # now it cannot be taken apart any more
                pending |= {fetch.piece.key: fetch for fetch in run if isinstance(fetch, Fetch)}
            if not pending:
                return  # others fetch it
            with self._engine.turns.answer(length_of(run)) as answer:
                async with self._requests, self._engine.requests:
                    error = await self._receive_in_time(run, pending, answer)
            in_time = not isinstance(error, DeadlineExceededError)
            if isinstance(error, SourceUnavailableError) and in_time and len(ranges_of(run)) > 1:
                self._start_apart(pending)
        except Exception as bug:
            log.exception("%s: internal error while fetching", self._name)
            error = SourceUnavailableError(f"internal error: {bug}")
        finally:
            for fetch in pending.values():
                with fetch.flight:
                    if error is None:  # cancelled: the mount is ending, and nobody may wait on
                        fetch.flight.fail(SourceUnavailableError("the mount is ending"))
                    else:
                        self._fail(fetch, error)

    def _start_apart(self, pending: dict[ChunkKey, Fetch]) -> None:
        """Ask for each range alone: not all of several came by one answer."""
        for fetches in grouped(pending.values(), Limits(RUN_BYTES)):
            self._start([*fetches], background=False)
        pending.clear()

    async def _turn(self, run: Run, turn: Turn) -> None:
        """Wait for the turn of a run, which may be taken apart meanwhile."""
        try:
            await self._engine.turns.wait(turn)
        finally:
            self._queue.remove(run, turn)

    async def _receive_in_time(
        self, run: Run, pending: dict[ChunkKey, Fetch], answer: Answer
    ) -> LazyfsError | None:
        length = length_of(run)
        timeout_s = self._engine.timeout_s
        deadline_s = timeout_s + length / SLOWEST_BYTES_PER_S if timeout_s else math.inf
        with trio.move_on_after(deadline_s):
            return await self._receive(run, pending, answer)
        return DeadlineExceededError(
            f"{self._source.origin}: {length} bytes did not come within {deadline_s:.0f} s"
        )

    async def _receive(
        self, run: Run, pending: dict[ChunkKey, Fetch], answer: Answer
    ) -> LazyfsError | None:
        """Stream the pieces in; those taken in leave ``pending``."""
        answer.sent()
        lengths = [fetch.where.length for fetch in run]
        fetches = iter(run)
        async with trio.open_nursery() as nursery:
            try:
                async with (
                    self._source.stream(*ranges_of(run)) as stream,
                    aclosing(answer.counted(stream)) as counted,
                ):
                    async for data in cut(counted, lengths):
                        fetch = next(fetches)
                        if isinstance(fetch, Fetch):
                            nursery.start_soon(self._land, pending, fetch, data)
            except SourceUnavailableError as error:
                return error
        return None

    async def _land(self, pending: dict[ChunkKey, Fetch], fetch: Fetch, data: bytes) -> None:
        """Check, hand out and store one piece; on a mismatch ask once more.

        If there is no time left for that, the piece stays pending.
        """
        piece, flight = fetch.piece, fetch.flight
        try:
            stored = await self._take_in(piece, data)
        except LazyfsError as error:
            del pending[piece.key]
            with flight:
                self._fail(fetch, error)
            return
        del pending[piece.key]
        self._outages.came()
        with flight, trio.CancelScope(shield=True):  # kept although the mount may be ending
            flight.land(stored)
            if fetch.rotten:
                await self._discard(piece)
            await self._engine.keep(piece.key, stored)

    async def _take_in(self, piece: Piece, data: bytes) -> bytes:
        if piece.take_in is as_it_is:
            return data
        liars: list[str] = []
        while True:
            try:
                workers = self._engine.workers
                return await trio.to_thread.run_sync(piece.take_in, data, limiter=workers)
            except (VerificationError, ImageFormatError) as error:  # without digest, the latter
                self._counters.verification_failures += 1
                liars.append(self._source.distrust(piece.where))
                if not ask_again(liars):
                    raise
                how = f"verification failed ({liars[-1]} gave it), asking once more"
                self._outages.report(how, piece, error, "chunk_refetched", liars[-1])
            data = await self._source.fetch(piece.where)

    def blame(self, piece: Piece, error: VerificationError, liars: list[str]) -> None:
        """Report who gave a piece that does not stand the proof though it was fetched anew.

        Args:
            piece: the piece.
            error: what is wrong with it.
            liars: who gave it so far; gets the latest one.

        Raises:
            VerificationError: ``error``, when asking once more makes no sense.
        """
        liars.append(self._source.distrust(piece.where))
        if not ask_again(liars):
            self._counters.verification_failures += 1
            self._counters.failed(error)
            self._outages.report("cannot be read", piece, error, "chunk_failed", liars[-1])
            raise error

    async def _discard(self, piece: Piece) -> None:
        try:
            await self._engine.store.discard(piece.key)
        except CacheError as error:
            log.warning("%s: %s stays in the cache: %s", self._name, piece.what, error)

    def _fail(self, fetch: Fetch, error: LazyfsError) -> None:
        self._counters.failed(error)
        self._outages.failed(fetch.piece, error)
        fetch.flight.fail(error)
