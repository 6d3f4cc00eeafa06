"""Sparse files: which inode chunks hold data and which are holes.

EROFS maps a file in chunks of one power-of-two size. Small chunks store few zeros but
need a long block map, large ones the reverse; the plan takes the size that costs least.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from lazyfs.erofs.build.space import round_up
from lazyfs.erofs.ondisk import (
    EROFS_BLOCK_MAP_ENTRY_SIZE,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_NULL_ADDR_32,
)
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange

MAX_FILE_SIZE = (1 << 63) - (1 << 16)
"""Bytes: what ``loff_t`` holds, with room for rounding up to a block."""
_ZEROS = bytes(1 << 20)


class ChunkRun(NamedTuple):
    """Neighbouring chunks of a file that hold data."""

    first: int
    end: int


class ChunkMap(NamedTuple):
    """How a file is cut; its runs were spooled one after the other from its data block on."""

    block_bits: int
    """Blocks of a chunk as a power of two."""
    chunks: int
    """Chunks of the file."""
    runs: tuple[ChunkRun, ...]

    @property
    def map_size(self) -> int:
        """Bytes of the block map."""
        return self.chunks * EROFS_BLOCK_MAP_ENTRY_SIZE

    def extents(self, size_bytes: int, block_size: int) -> Iterator[ByteRange]:
        """The ranges of the file to store, each a whole number of blocks."""
        chunk_size = block_size << self.block_bits
        blocks_end = round_up(size_bytes, block_size)
        for first, end in self.runs:
            yield ByteRange(
                first * chunk_size, min(end * chunk_size, blocks_end) - first * chunk_size
            )

    def encode(self, first_block: int, place: Callable[[int], int]) -> bytes:
        """The block map, little-endian ``__le32``.

        Args:
            first_block: of the spool, where the data begin.
            place: gives the address of a block of the spool.
        """
        addresses = array("I", [EROFS_NULL_ADDR_32]) * self.chunks
        block = first_block
        for first, end in self.runs:
            for chunk in range(first, end):
                addresses[chunk] = place(block)
                block += 1 << self.block_bits
        if sys.byteorder == "big":
            addresses.byteswap()
        return addresses.tobytes()


def check_segments(segments: Sequence[ByteRange], size_bytes: int) -> None:
    """Check that segments are in order, apart and inside the file.

    Raises:
        ConversionError: they are not, or the file is too large.
    """
    if size_bytes > MAX_FILE_SIZE:
        raise ConversionError(f"size of {size_bytes} bytes, at most {MAX_FILE_SIZE}")
    position = 0
    for offset, length in segments:
        if offset < position or length < 0 or offset + length > size_bytes:
            raise ConversionError(
                f"sparse map: {length} bytes at {offset}, after byte {position} of {size_bytes}"
            )
        position = offset + length


def plan_chunks(size_bytes: int, segments: Sequence[ByteRange], block_size: int) -> ChunkMap | None:
    """Cut a sparse file of checked ``segments``; None if no block of it is a hole."""
    blocks = -(-size_bytes // block_size)
    runs = merged_runs(
        ChunkRun(offset // block_size, -(-(offset + length) // block_size))
        for offset, length in segments
        if length
    )
    if runs == ([ChunkRun(0, blocks)] if blocks else []):
        return None
    best: tuple[int, ChunkMap] | None = None
    for bits in range(EROFS_CHUNK_FORMAT_BLKBITS_MASK + 1):
        chunks = -(-blocks // (1 << bits))
        plan = ChunkMap(bits, chunks, tuple(runs))
        stored = sum(extent.length for extent in plan.extents(size_bytes, block_size))
        cost = stored + plan.map_size
        if best is None or cost <= best[0]:
            best = cost, plan
        if chunks == 1:
            break
        runs = merged_runs(ChunkRun(first >> 1, (end + 1) >> 1) for first, end in runs)
    if best is None:
        raise AssertionError("no chunk size was tried")
    return best[1]


def merged_runs(runs: Iterable[ChunkRun]) -> list[ChunkRun]:
    """Runs in order, those that touch or overlap as one."""
    merged: list[ChunkRun] = []
    for run in runs:
        if merged and run.first <= merged[-1].end:
            merged[-1] = ChunkRun(merged[-1].first, max(run.end, merged[-1].end))
        else:
            merged.append(run)
    return merged


def fill_extents(
    extents: Iterable[ByteRange], segments: Iterable[ByteRange], pieces: Iterable[bytes]
) -> Iterator[bytes | memoryview]:
    """The bytes of ``extents``: segments from ``pieces``, zeros between them.

    Every segment lies in one extent; ``pieces`` hold the segments one after the other.
    """
    source = _Pieces(pieces)
    data = [segment for segment in segments if segment.length]
    index = 0
    for extent in extents:
        position = extent.offset
        while index < len(data) and data[index].offset < extent.end:
            yield from zeros(data[index].offset - position)
            yield from source.take(data[index].length)
            position = data[index].end
            index += 1
        yield from zeros(extent.end - position)


def zeros(length: int) -> Iterator[bytes]:
    """``length`` zeros in pieces of bounded size."""
    while length > 0:
        piece = _ZEROS[:length]
        yield piece
        length -= len(piece)


class _Pieces:
    """Cuts a stream of pieces at other places."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def take(self, length: int) -> Iterator[memoryview]:
        while length:
            if not self._rest:
                self._rest = memoryview(next(self._pieces))
            piece = self._rest[:length]
            self._rest = self._rest[length:]
            length -= len(piece)
            yield piece
