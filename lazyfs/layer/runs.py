"""Runs: pieces of a blob, mostly neighbours, that are asked for by one request."""

from collections.abc import Container, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from cache.flights import Flight
from cache.key import ChunkKey
from lazyfs.layer.piece import Piece
from lazyfs.layer.turns import Turn
from lazyfs.model import ByteRange


class Fetch(NamedTuple):
    """A piece on its way."""

    piece: Piece
    flight: Flight
    rotten: bool = False
    """What the store has of it is to be replaced, but not before the new bytes are there."""

    @property
    def where(self) -> ByteRange:
        """Its place in the blob."""
        return self.piece.where


class Passing(NamedTuple):
    """What lies between pieces and comes along for nothing, in place of a second request.

    The store has it, somebody fetches it, or nobody wants it.
    """

    where: ByteRange


Run = list[Fetch | Passing]


class Limits(NamedTuple):
    """Which pieces one request asks for."""

    run_bytes: int
    """... if they are more than one."""
    gap_bytes: int = 0
    """Between two of them, which come along."""
    ranges: int = 1
    """What lies further apart, or before, is another range."""

    def bridged(self, before: Fetch | Passing, fetch: Fetch) -> ByteRange | None:
        """What comes along between two pieces, perhaps nothing; None: they are two ranges."""
        gap = fetch.where.offset - before.where.end
        return ByteRange(before.where.end, gap) if 0 <= gap <= self.gap_bytes else None


def grouped(fetches: Iterable[Fetch], limits: Limits) -> Iterator[list[Fetch]]:
    """What each request asks for, of pieces in the order in which they are to come."""
    group: list[Fetch] = []
    ranges, length = 1, 0
    for fetch in fetches:
        if group:
            bridge = limits.bridged(group[-1], fetch)
            ranges += bridge is None
            length += bridge.length if bridge is not None else 0
            if ranges > limits.ranges or length + fetch.where.length > limits.run_bytes:
                yield group
                group, ranges, length = [], 1, 0
        group.append(fetch)
        length += fetch.where.length
    if group:
        yield group


def length_of(run: Run) -> int:
    """Bytes that a run asks for."""
    return sum(part.where.length for part in run)


def ranges_of(run: Run) -> list[ByteRange]:
    """The ranges of the blob that a run asks for: one, unless some of it lies apart."""
    ranges: list[ByteRange] = []
    for part in run:
        start, length = part.where
        if ranges and ranges[-1].end == start:
            start, length = ranges[-1].offset, ranges.pop().length + length
        ranges.append(ByteRange(start, length))
    return ranges


def keys_of(run: Run) -> list[ChunkKey]:
    """Of the pieces that a run fetches."""
    return [fetch.piece.key for fetch in run if isinstance(fetch, Fetch)]


class _Queued(NamedTuple):
    run: Run
    turn: Turn


class Queue:
    """Runs that wait for their turn, by the pieces that they fetch."""

    def __init__(self) -> None:
        self._queued: dict[ChunkKey, _Queued] = {}

    def add(self, run: Run, turn: Turn) -> None:
        """Have a run wait; it is emptied if it is taken apart meanwhile."""
        self._queued.update(dict.fromkeys(keys_of(run), _Queued(run, turn)))

    def remove(self, run: Run, turn: Turn) -> None:
        """Let it wait no longer."""
        for key in keys_of(run):
            queued = self._queued.get(key)
            if queued is not None and queued.turn is turn:
                del self._queued[key]

    def taken_apart(self, pieces: Iterable[Piece]) -> Iterator[tuple[bool, Run, Turn]]:
        """Take runs out in which somebody wants one of ``pieces`` now.

        Returns:
            Their parts, whether what is in it is wanted, and the turn that it waited for.
        """
        wanted = {piece.key for piece in pieces} & self._queued.keys()
        for key in wanted:
            queued = self._queued.get(key)
            if queued is None or queued.turn.granted:
                continue  # it was among others that are wanted, or is just being asked for
            run = queued.run.copy()
            queued.run.clear()
            queued.turn.withdraw()
            self.remove(run, queued.turn)
            for are_wanted, part in _parts(run, wanted):
                yield are_wanted, part, queued.turn


def _parts(run: Run, wanted: Container[ChunkKey]) -> Iterator[tuple[bool, Run]]:
    """Those in which all pieces are wanted, or none is."""

    def is_wanted(fetch: Fetch | Passing) -> bool:
        return isinstance(fetch, Fetch) and fetch.piece.key in wanted

    for are_wanted, fetches in groupby(run, is_wanted):
        part = list(fetches)
        if keys_of(part):
            yield are_wanted, part
