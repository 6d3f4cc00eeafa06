"""What a profile makes a mount fetch, in which order and portions."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from lazyfs.model import ByteRange
from lazyfs.profile.document import BLOCK_BYTES, BlockRun

FIRST_BATCH_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
"""Bytes of blobs in the first portion, which is wanted at once, and the most in later ones: each
has twice as many as the one before."""

MAX_SPANS = 6
"""Places of blobs in a portion: requests of two portions leave some of a layer's for readers."""

LIMIT_BYTES = 2 << 30
"""Bytes of blobs that one profile may make a mount fetch."""


class Table(Protocol):
    """The chunks of a layer, as ``lazyfs.seekable.chunktable.ChunkTable`` has them."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def index_at(self, offset: int) -> int:
        """The chunk that has a byte of the content."""
        ...

    def frame(self, index: int) -> ByteRange:
        """Its place in the blob."""
        ...

    def chunk(self, index: int) -> ByteRange:
        """Its place in the content."""
        ...


class Batch(NamedTuple):
    """Chunks to ask for together."""

    ranges: Mapping[int, Sequence[ByteRange]]
    """By layer: ranges of the image, each of whole chunks as far as the image goes."""
    blob_bytes: int


class Dropped(NamedTuple):
    """What of a profile cannot be used."""

    blocks: int
    """Those that no layer of the image has."""
    limited: bool
    """Whether there was more than ``LIMIT_BYTES``."""


class Plan:
    """Chunks in order of first use, none twice."""

    def __init__(self, blocks: Sequence[BlockRun], layers: Mapping[int, tuple[Table, int]]) -> None:
        """Find the chunks that have the blocks of a profile.

        Args:
            blocks: of a profile; may say anything.
            layers: by the index that the blocks have: the table and the size of the image in
                bytes, where chunks are fetched one by one.
        """
        self._layers = layers
        self.blob_bytes = 0
        """Of all chunks."""
        limited = False
        self._order: list[tuple[int, int]] = []
        self.chunks: Mapping[int, set[int]] = {layer: set() for layer in layers}
        """The same by layer."""
        wanted, outside = _named(blocks, layers)
        for layer, index in wanted:
            length = layers[layer][0].frame(index).length
            if self.blob_bytes + length > LIMIT_BYTES:
                limited = True
                break
            self._order.append((layer, index))
            self.chunks[layer].add(index)
            self.blob_bytes += length
        self.dropped = Dropped(outside, limited)

    def batches(self, places: Callable[[], int]) -> Iterator[Batch]:
        """Portions to ask for one after the other.

        Args:
            places: so many places of a blob come by one request, as far as is known when a
                portion is taken; 1: each by its own. Then there are few in a portion, and the
                order suffers: neighbours come together.
        """
        rest = deque(self._order)
        limit = FIRST_BATCH_BYTES
        while rest:
            apart = places()
            portion = _Portion(self._layers, max(apart, MAX_SPANS), look_back=apart == 1)
            while rest and portion.add(*rest[0], limit):
                rest.popleft()
            limit = min(2 * limit, BATCH_BYTES)
            yield portion.batch()


def _named(
    blocks: Sequence[BlockRun], layers: Mapping[int, tuple[Table, int]]
) -> tuple[Iterable[tuple[int, int]], int]:
    """Layers and chunks with the blocks of a profile, each once, and how many blocks nobody has."""
    outside = 0
    wanted: dict[tuple[int, int], None] = {}
    for run in blocks:
        table, size_bytes = layers.get(run.layer, (None, 0))
        end = min(run.end * BLOCK_BYTES, size_bytes)
        offset = run.first * BLOCK_BYTES
        if table is None or offset >= end:
            outside += run.length
            continue
        outside += run.end - -(-end // BLOCK_BYTES)
        while offset < end:
            index = table.index_at(offset)
            wanted[run.layer, index] = None
            offset = table.chunk(index).end
    return wanted, outside


class _Portion:
    """A batch that grows."""

    def __init__(
        self, layers: Mapping[int, tuple[Table, int]], most: int, *, look_back: bool
    ) -> None:
        self._layers = layers
        self._most = most
        self._look_back = look_back
        self._spans: list[tuple[int, int, int]] = []
        """Layer, first chunk and the one behind the last, in order of first use."""
        self._bytes = 0

    def add(self, layer: int, index: int, limit_bytes: int) -> bool:
        """Take a chunk, if there is room."""
        more = self._layers[layer][0].frame(index).length
        if self._spans and self._bytes + more > limit_bytes:
            return False
        place = self._neighbour(layer, index)
        if place is None and len(self._spans) == self._most:
            return False
        self._bytes += more
        if place is None:
            self._spans.append((layer, index, index + 1))
        else:
            _, first, end = self._spans[place]
            self._spans[place] = (layer, min(first, index), max(end, index + 1))
        return True

    def batch(self) -> Batch:
        """What is in it."""
        ranges: dict[int, list[ByteRange]] = {}
        for layer, first, end in self._spans:
            table, size_bytes = self._layers[layer]
            start, stop = table.chunk(first).offset, min(table.chunk(end - 1).end, size_bytes)
            ranges.setdefault(layer, []).append(ByteRange(start, stop - start))
        return Batch(ranges, self._bytes)

    def _neighbour(self, layer: int, index: int) -> int | None:
        """The span that a chunk lies beside."""
        last = len(self._spans) - 1
        for place in range(0 if self._look_back else max(0, last), last + 1):
            other, first, end = self._spans[place]
            if other == layer and first - 1 <= index <= end:
                return place
        return None
