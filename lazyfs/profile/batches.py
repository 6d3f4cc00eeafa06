"""What a profile makes a mount fetch, in which order and portions."""

from collections.abc import Iterator, Mapping, Sequence
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


def plan_batches(
    blocks: Sequence[BlockRun], layers: Mapping[int, tuple[Table, int]]
) -> tuple[list[Batch], Dropped]:
    """Turn blocks into portions of chunks, in order of first use, no chunk twice.

    Args:
        blocks: of a profile; may say anything.
        layers: by the index that the blocks have: the table and the size of the image in bytes,
            where chunks are fetched one by one.
    """
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
    batches: list[Batch] = []
    portion = _Portion(layers)
    limit = FIRST_BATCH_BYTES
    total = 0
    for layer, index in wanted:
        length = layers[layer][0].frame(index).length
        if total + length > LIMIT_BYTES:
            return [*batches, *portion.taken()], Dropped(outside, limited=True)
        if not portion.fits(layer, index, limit):
            batches += portion.taken()
            limit = min(2 * limit, BATCH_BYTES)
        portion.add(layer, index)
        total += length
    return [*batches, *portion.taken()], Dropped(outside, limited=False)


class _Portion:
    """A batch that grows."""

    def __init__(self, layers: Mapping[int, tuple[Table, int]]) -> None:
        self._layers = layers
        self._spans: list[tuple[int, int, int]] = []
        """Layer, first chunk and the one behind the last, in order of first use."""
        self._bytes = 0

    def fits(self, layer: int, index: int, limit_bytes: int) -> bool:
        """Whether a chunk may be added."""
        more = self._layers[layer][0].frame(index).length
        if self._spans and self._bytes + more > limit_bytes:
            return False
        return len(self._spans) < MAX_SPANS or self._neighbour(layer, index) is not None

    def add(self, layer: int, index: int) -> None:
        self._bytes += self._layers[layer][0].frame(index).length
        place = self._neighbour(layer, index)
        if place is None:
            self._spans.append((layer, index, index + 1))
            return
        _, first, end = self._spans[place]
        self._spans[place] = (layer, min(first, index), max(end, index + 1))

    def taken(self) -> Iterator[Batch]:
        """The batch, if there is one; then it is empty."""
        ranges: dict[int, list[ByteRange]] = {}
        for layer, first, end in self._spans:
            table, size_bytes = self._layers[layer]
            start, stop = table.chunk(first).offset, min(table.chunk(end - 1).end, size_bytes)
            ranges.setdefault(layer, []).append(ByteRange(start, stop - start))
        if self._spans:
            yield Batch(ranges, self._bytes)
        self._spans, self._bytes = [], 0

    def _neighbour(self, layer: int, index: int) -> int | None:
        for place, (other, first, end) in enumerate(self._spans):
            if other == layer and first - 1 <= index <= end:
                return place
        return None
