"""Which chunks are likely to be wanted next: those close to what was wanted lately.

Pure. A program that starts reads here and there, one chunk after the other, but most of it in
clusters: page faults in a large library, files of one directory. So each chunk that a reader
wants speaks for its neighbours on both sides, the more the nearer they are and the less the
longer ago that was. Guesses that are wanted later pay for more of them; those that are not use a
credit up, of which what readers had to wait for brings back a little.

And whoever has waited for some inodes and directories of an image will want others: each file on
his way costs him a round trip, and all of them together are small.

What a program probably wants as a whole (its code) is filled up behind the nearest neighbours.
"""

from collections import deque
from typing import NamedTuple

NEAR = 8
"""A wanted chunk speaks for so many on each side."""

LATELY = 16
"""So many wanted chunks are remembered."""

FADING = 0.8
"""Each further wanted chunk makes the older ones count so much of what they did."""

LEAST = 0.5
"""What speaks for a chunk must come to so much; the neighbour of the last one has 1."""

METADATA = 1.0
"""Speaks for one chunk of metadata after the other, once a reader has waited for such a one."""

FREE_BYTES = 4 << 20
"""May be guessed in vain at first: a start is nearly over when guesses have paid for others."""

WANTED_SHARE = 0.5
"""... and of what readers waited for."""

FORESEEN_BYTES = 8 << 20
"""What was foreseen and is not wanted yet comes to so much at most."""

FILL = 0.6
"""Speaks for the next chunk of a part that is probably wanted as a whole: more than what speaks for
the second one beside the last that was wanted, and less than for the first."""

FILL_AHEAD = 8
"""Of such a part so many chunks may be guessed and not be wanted yet."""

MOST_PARTS = 64
"""Such parts that are remembered."""


class Place(NamedTuple):
    """A chunk of a layer."""

    layer: int
    chunk: int


class _State:
    """Of a chunk, as a byte."""

    UNKNOWN, WANTED, GUESSED, PASSED, FORESEEN = range(5)


class Likely:
    """The chunks of some layers."""

    def __init__(self) -> None:
        self._states: dict[int, bytearray] = {}
        self._lately: deque[Place] = deque(maxlen=LATELY)
        self._metadata: dict[int, range] = {}
        """Chunks of layers of whose metadata none was waited for."""
        self._in_use: deque[Place] = deque()
        """Chunks of metadata of the others."""
        self._parts: list[tuple[int, range]] = []
        self._last_parts: list[tuple[int, range]] = []
        """Parts that are probably wanted as a whole, and those after them."""
        self.waited_bytes = 0
        """Wanted, and neither there nor guessed."""
        self.guessed_bytes = 0
        self.hit_bytes = 0
        """Guessed, and wanted later."""
        self.idle_bytes = 0
        """Foreseen, and not wanted yet."""

    def add(self, layer: int, chunks: int) -> None:
        """There is a layer of so many chunks."""
        self._states[layer] = bytearray(chunks)

    def metadata(self, layer: int, chunks: range) -> None:
        """Inodes and directories of a layer are about there."""
        self._metadata[layer] = chunks

    def all_metadata(self) -> None:
        """Inodes and directories of all layers will be wanted, though nobody waits for any yet."""
        for layer in tuple(self._metadata):
            self._use_metadata(layer)

    def _use_metadata(self, layer: int) -> None:
        self._in_use.extend(Place(layer, chunk) for chunk in self._metadata.pop(layer))

    def fill(self, layer: int, chunks: range, *, last: bool = False) -> None:
        """Chunks of a layer are probably wanted all together; ``last``: after other such parts."""
        parts = self._last_parts if last else self._parts
        if len(parts) < MOST_PARTS:
            parts.append((layer, chunks))

    def _filling(self) -> Place | None:
        """The next chunk of the first part of which few are guessed in vain so far."""
        for parts in (self._parts, self._last_parts):
            for part in tuple(parts):
                layer, chunks = part
                states = self._states[layer][chunks.start : chunks.stop]
                if (at := states.find(_State.UNKNOWN)) < 0:
                    parts.remove(part)
                elif states.count(_State.GUESSED) < FILL_AHEAD:
                    return Place(layer, chunks.start + at)
        return None

    def is_new(self, place: Place) -> bool:
        """Whether ``wanted`` was not told of a chunk."""
        return self._states[place.layer][place.chunk] != _State.WANTED

    def wanted(self, place: Place, length: int, *, here: bool) -> bool:
        """A reader wants a chunk, for the first time; whether it was guessed or foreseen.

        Args:
            place: which.
            length: of its frame.
            here: whether it was there. If it was not guessed it says nothing then, and neither
                does what was foreseen: the reason for that did not speak for its neighbours.
        """
        states = self._states[place.layer]
        before = states[place.chunk]
        states[place.chunk] = _State.WANTED
        if before == _State.FORESEEN:
            self.idle_bytes -= length
            return True
        guessed = before == _State.GUESSED
        if guessed:
            self.hit_bytes += length
        elif here:
            return False
        else:
            self.waited_bytes += length
        self._lately.append(place)
        if place.chunk in self._metadata.get(place.layer, ()):
            self._use_metadata(place.layer)
        return guessed

    def guessed(self, place: Place, length: int) -> None:
        """A chunk is fetched though nobody asked for it."""
        self._states[place.layer][place.chunk] = _State.GUESSED
        self.guessed_bytes += length

    def foresee(self, place: Place, length: int) -> bool:
        """A chunk will be wanted, wherever readers are; whether it is to be fetched for that."""
        if not self._is_unknown(place) or self.idle_bytes + length > FORESEEN_BYTES:
            return False
        self._states[place.layer][place.chunk] = _State.FORESEEN
        self.idle_bytes += length
        return True

    def is_foreseen(self, place: Place) -> bool:
        """Whether a chunk was foreseen, and no reader has wanted it yet."""
        return self._states[place.layer][place.chunk] == _State.FORESEEN

    def pass_over(self, place: Place) -> None:
        """A chunk is there, or somebody fetches it: it need not be guessed."""
        self._states[place.layer][place.chunk] = _State.PASSED

    def affords(self, length: int) -> bool:
        """Whether so much may be guessed now, by how the guesses so far have turned out."""
        vain = self.guessed_bytes - self.hit_bytes + length
        return vain <= FREE_BYTES + self.hit_bytes + WANTED_SHARE * self.waited_bytes

    def best(self) -> Place | None:
        """The chunk that is wanted next most probably; None: nothing speaks for any."""
        speaks: dict[Place, float] = {}
        weight = 1.0
        for layer, index in reversed(self._lately):
            states = self._states[layer]
            first, end = max(0, index - NEAR), min(len(states), index + NEAR + 1)
            for near in range(first, end):
                if states[near] == _State.UNKNOWN:
                    place = Place(layer, near)
                    speaks[place] = speaks.get(place, 0.0) + weight / abs(near - index)
            weight *= FADING
        while self._in_use and not self._is_unknown(self._in_use[0]):
            self._in_use.popleft()
        if self._in_use:
            speaks[self._in_use[0]] = speaks.get(self._in_use[0], 0.0) + METADATA
        next_of_part = self._filling()
        if next_of_part is not None:
            speaks[next_of_part] = speaks.get(next_of_part, 0.0) + FILL
        if not speaks:
            return None
        # Of equals the one behind: files are read forwards more often.
        found = max(speaks, key=lambda place: (speaks[place], place.chunk))
        return found if speaks[found] >= LEAST else None

    def _is_unknown(self, place: Place) -> bool:
        return self._states[place.layer][place.chunk] == _State.UNKNOWN
