"""Guesses of a mount: chunks that nobody asked for, fetched while the line would be idle."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import trio

from cache.flights import Flights
from cache.store import ChunkStore
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.likely import Likely, Place
from lazyfs.layer.piece import Piece
from lazyfs.layer.turns import Turns, nothing

INODE_BYTES = 90
"""What an inode takes on average with its name in a directory: 64, 12 and the name."""

METADATA_BYTES, METADATA_CHUNKS = 2 << 20, 64
"""More metadata of a layer, or in more chunks, is not guessed: a program does not want all that."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Layer:
    """What takes part."""

    chunks: Chunks
    begin: Callable[[int, int], None]
    counters: LayerCounters


class Guesser:
    """Fetches what is likely to be wanted next, of all layers of a mount."""

    def __init__(
        self, nursery: trio.Nursery, store: ChunkStore, flights: Flights, turns: Turns
    ) -> None:
        """Guess what ``store`` and ``flights`` lack, while ``turns`` leave the line idle."""
        self._nursery = nursery
        self._store = store
        self._flights = flights
        self._turns = turns
        self._layers: list[_Layer] = []
        self._next: tuple[Place, Piece] | None = None
        self._foreseen: deque[Place] = deque()
        """In the order in which they were foreseen; not asked for yet."""
        self._nothing = True
        """There is nothing to guess until readers want something else."""
        self._started = False
        self.is_alone = True
        """No profile has brought what a start wants first."""
        self.metadata_bytes = 0
        """Frames of the layers whose metadata may be guessed."""
        self.likely = Likely()
        self.begun = trio.Event()
        """It is time to guess: what a profile brings is here."""

    def layer(
        self, chunks: Chunks, begin: Callable[[int, int], None], counters: LayerCounters
    ) -> "LayerGuesses":
        """Have a layer take part.

        Args:
            chunks: of the layer.
            begin: begins to fetch what a range (offset, length) inside the image needs, and
                what proves it; returns at once.
            counters: of the layer.
        """
        number = len(self._layers)
        self._layers.append(_Layer(chunks, begin, counters))
        self.likely.add(number, chunks.of_image)
        return LayerGuesses(self, number, chunks)

    def foreseen(self, number: int, indexes: range, *, at_once: bool = False) -> None:
        """Chunks of a layer will be wanted soon, wherever readers are; returns at once.

        Args:
            number: of the layer.
            indexes: of the chunks.
            at_once: ask for them now, whatever is under way.
        """
        layer = self._layers[number]
        found: list[Place] = []
        for index in indexes:
            piece = layer.chunks.piece(index)
            place = Place(number, index)
            if at_once and self.likely.is_foreseen(place) and not self._here(piece):
                found.append(place)
            elif not self._here(piece) and self.likely.foresee(place, piece.where.length):
                (found if at_once else self._foreseen).append(place)
        self._begin(found)
        self._foresee_on()

    def _foresee_on(self) -> None:
        """Ask for what was foreseen, as long as the line has room.

        Where the rest of an image comes in the background there never is any: then at once.
        """
        found: list[Place] = []
        length = 0
        waits = not self._turns.has_late
        while self._foreseen:
            place = self._foreseen[0]
            piece = self._layers[place.layer].chunks.piece(place.chunk)
            if self.likely.is_foreseen(place) and not self._here(piece):
                if waits and not self._turns.line.may_foresee(piece.where.length, length):
                    break
                length += piece.where.length
                found.append(place)
            self._foreseen.popleft()
        self._begin(found)

    @property
    def is_line_long(self) -> bool:
        """See ``Line.is_long``."""
        return self._turns.line.is_long

    def all_metadata(self) -> None:
        """Begin to fetch inodes and directories of all layers, if they are small together."""
        if self.metadata_bytes <= METADATA_BYTES:
            self.likely.all_metadata()
            self._think_again()

    def fill(self, number: int, indexes: range, *, last: bool = False) -> None:
        """See ``Likely.fill``; on long lines only, and not behind a profile, which knows better."""
        if self.is_line_long and self.is_alone:
            self.likely.fill(number, indexes, last=last)
            self._think_again()

    def _think_again(self) -> None:
        """There may be something else to guess."""
        self._next, self._nothing = None, False
        if self._started:
            self._nursery.start_soon(self._guess_later)

    def start(self, *, alone: bool = True) -> None:
        """Guess from now on; ``alone``: nobody else knew what will be wanted."""
        self._started, self.is_alone = True, alone
        self.begun.set()
        self._turns.spare = self._guess
        self._guess()

    def wanted(self, number: int, index: int) -> None:
        """A reader is about to ask for a chunk, perhaps not for the first time."""
        place = Place(number, index)
        if not self.likely.is_new(place):
            return
        layer = self._layers[number]
        piece = layer.chunks.piece(index)
        length = piece.where.length
        if self.likely.wanted(place, length, here=self._here(piece)):
            layer.counters.guessed_right_bytes += length
        self._think_again()

    async def _guess_later(self) -> None:
        """Readers ask first."""
        await trio.lowlevel.checkpoint()
        self._guess()

    def _guess(self) -> None:
        """Guess as long as the line has room; not even a bug of it is anybody's but its own."""
        try:
            self._guess_on()
        except Exception:
            log.exception("guessing stops: internal error")
            self._started = False
            self._turns.spare = nothing

    def _guess_on(self) -> None:
        """Neighbours among the guesses become one request."""
        if self._foreseen:
            self._foresee_on()
        guessed: list[Place] = []
        length = 0
        while not self._nothing and not self._foreseen:
            if self._next is None:
                self._next = self._best()
                self._nothing = self._next is None
                continue
            place, piece = self._next
            if not self._turns.line.may_guess(piece.where.length, length):
                break
            self._next = None
            length += piece.where.length
            self.likely.guessed(place, piece.where.length)
            guessed.append(place)
        self._begin(guessed)

    def _begin(self, places: Sequence[Place]) -> None:
        """Begin to fetch chunks."""
        for first, end in _runs(places):
            layer = self._layers[first.layer]
            layer.counters.guessed_bytes += sum(
                layer.chunks.piece(index).where.length for index in range(first.chunk, end)
            )
            layer.begin(*layer.chunks.span(first.chunk, end))

    def _best(self) -> tuple[Place, Piece] | None:
        """What to guess next, if anything."""
        while (place := self.likely.best()) is not None:
            piece = self._layers[place.layer].chunks.piece(place.chunk)
            if not self._here(piece):
                return (place, piece) if self.likely.affords(piece.where.length) else None
            self.likely.pass_over(place)
        return None

    def _here(self, piece: Piece) -> bool:
        """Whether a chunk is there or on its way."""
        flying = self._flights.flying(piece.key) is not None
        return flying or self._store.contains(piece.key)


def _runs(places: Sequence[Place]) -> Iterator[tuple[Place, int]]:
    """Neighbours of one layer: the first, and the index after the last."""
    numbered = enumerate(sorted(places))
    for _, run in groupby(numbered, lambda item: (item[1].layer, item[1].chunk - item[0])):
        neighbours = [place for _, place in run]
        yield neighbours[0], neighbours[-1].chunk + 1


class LayerGuesses:
    """What readers of one layer want."""

    def __init__(self, guesser: Guesser, number: int, chunks: Chunks) -> None:
        """Tell ``guesser`` about its layer ``number``."""
        self._guesser = guesser
        self._number = number
        self._table = chunks.table
        self._image_bytes = chunks.image_size_bytes
        self._start = self._end = 0
        """Of the chunk that was wanted last, in the image."""

    def metadata(self, offset: int, inodes: int) -> None:
        """So many inodes and their directories lie about there, as the superblock says."""
        start = max(0, offset)
        end = min(offset + inodes * INODE_BYTES, self._image_bytes)
        if start >= end:
            return
        first, last = self._table.index_at(start), self._table.index_at(end - 1)
        length = self._table.frame(last).end - self._table.frame(first).offset
        if length <= METADATA_BYTES and last - first < METADATA_CHUNKS:
            self._guesser.metadata_bytes += length
            self._guesser.likely.metadata(self._number, range(first, last + 1))

    def foreseen(self, offset: int, length: int, *, at_once: bool = False) -> None:
        """A range inside the image, not empty, will be wanted soon; returns at once.

        See ``Guesser.foreseen``.
        """
        self._guesser.foreseen(self._number, self._indexes(offset, length), at_once=at_once)

    def _indexes(self, offset: int, length: int) -> range:
        first, last = self._table.index_at(offset), self._table.index_at(offset + length - 1)
        return range(first, last + 1)

    def fill(self, offset: int, length: int, *, last: bool = False) -> None:
        """A range inside the image, not empty, is probably wanted as a whole.

        See ``Guesser.fill``.
        """
        self._guesser.fill(self._number, self._indexes(offset, length), last=last)

    def used(self, offset: int, length: int) -> None:
        """A range inside the image is about to be read; returns at once."""
        end = offset + length
        if self._start <= offset and end <= self._end:
            return
        at = offset
        while at < end:
            index = self._table.index_at(at)
            chunk = self._table.chunk(index)
            self._start, self._end = chunk.offset, chunk.end
            self._guesser.wanted(self._number, index)
            at = chunk.end
