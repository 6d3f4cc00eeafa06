"""Which file data go to the front of an image, and how files are cut for that.

A file of which nearly all is hot goes to the front whole. Of another one the hot chunks do: it
gets a block map (EROFS chunk-based layout), whose chunks may lie anywhere. Small chunks bring
little into the front that is not hot, but need a long map and many steps to read; so the largest
chunk is taken that costs little more than the best one.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from lazyfs.erofs.build.order import BlockSpan
from lazyfs.erofs.build.sparse import ChunkMap, ChunkRun, merged_runs
from lazyfs.erofs.build.tree import Inode, RegularFile
from lazyfs.erofs.ondisk import EROFS_BLOCK_MAP_ENTRY_SIZE, EROFS_CHUNK_FORMAT_BLKBITS_MASK

EXCESS = 8
"""One part in so many may be in the front, or in a block map, beyond the least that can be."""


class HotRange(NamedTuple):
    """Bytes of a file that will be read early."""

    path: bytes
    """From the root, without a slash in front."""
    offset: int
    length: int


class Front(NamedTuple):
    """What goes to the front."""

    spans: tuple[BlockSpan, ...]
    """Of the spool, in the order that they get."""
    inodes: tuple[Inode, ...]
    """The files, and the directories that lead to them."""
    missing: tuple[bytes, ...]
    """Paths that are no regular files of the image."""


def plan_front(
    find: Callable[[bytes], Sequence[Inode]], hot: Sequence[HotRange], block_size: int
) -> Front:
    """Choose the front, and give files that must be cut their block maps.

    Args:
        find: gives the inodes on the way to a path, the last one its own; nothing if there is
            none.
        hot: in order of first use; parts of it may overlap.
        block_size: bytes of a block.
    """
    ways = {path: find(path) for path in dict.fromkeys(each.path for each in hot)}
    touched: list[tuple[RegularFile, ChunkRun]] = []
    runs: dict[RegularFile, list[ChunkRun]] = {}
    for path, offset, length in hot:
        file = ways[path][-1] if ways[path] else None
        if not isinstance(file, RegularFile):
            continue
        end = min(offset + length, file.size_bytes)
        if offset < end:
            run = ChunkRun(offset // block_size, -(-end // block_size))
            touched.append((file, run))
            runs.setdefault(file, []).append(run)
    for file, hot_runs in runs.items():
        if file.chunks is None:
            file.chunks = _plan_split(-(-file.size_bytes // block_size), hot_runs, block_size)
    cuts = {file: _Cut(file, block_size) for file in runs}
    spans = _joined(span for file, run in touched for span in cuts[file].take(run))
    found = {path: way for path, way in ways.items() if way and isinstance(way[-1], RegularFile)}
    return Front(
        tuple(spans),
        tuple(dict.fromkeys(inode for way in found.values() for inode in way)),
        tuple(path for path in ways if path not in found),
    )


def _plan_split(blocks: int, hot: Sequence[ChunkRun], block_size: int) -> ChunkMap | None:
    """How to cut a dense file; None: not at all."""
    runs = merged_runs(sorted(hot))
    costs: list[int] = []
    for bits in range(EROFS_CHUNK_FORMAT_BLKBITS_MASK + 1):
        chunks = -(-blocks // (1 << bits))
        if chunks == 1:
            break
        in_front = sum(min(end << bits, blocks) - (first << bits) for first, end in runs)
        costs.append(in_front * block_size + chunks * EROFS_BLOCK_MAP_ENTRY_SIZE)
        runs = merged_runs(ChunkRun(first >> 1, (end + 1) >> 1) for first, end in runs)
    whole = blocks * block_size
    most = min([whole, *costs]) * (EXCESS + 1) // EXCESS
    if whole <= most:
        return None
    bits = max(bits for bits, cost in enumerate(costs) if cost <= most)
    chunks = -(-blocks // (1 << bits))
    return ChunkMap(bits, chunks, (ChunkRun(0, chunks),))


class _Cut:
    """The pieces of one file, each handed out once."""

    def __init__(self, file: RegularFile, block_size: int) -> None:
        blocks = -(-file.size_bytes // block_size)
        chunks = file.chunks
        self._bits = 0 if chunks is None else chunks.block_bits
        self._runs = (ChunkRun(0, blocks),) if chunks is None else chunks.runs
        self._whole = chunks is None
        self._blocks = blocks
        self._first_chunks = [run.first for run in self._runs]
        lengths = (run.end - run.first << self._bits for run in self._runs)
        self._spooled = [*accumulate(lengths, initial=file.data_block)]
        self._taken: set[int] = set()

    def take(self, touched: ChunkRun) -> Iterator[BlockSpan]:
        """The spans of the spool that hold some blocks of the file and were not taken before."""
        if self._whole:
            if not self._taken:
                self._taken.add(0)
                yield BlockSpan(self._spooled[0], self._blocks)
            return
        first, end = touched.first >> self._bits, -(-touched.end >> self._bits)
        index = max(0, bisect_right(self._first_chunks, first) - 1)
        for number in range(index, len(self._runs)):
            run = self._runs[number]
            if run.first >= end:
                break
            for chunk in range(max(first, run.first), min(end, run.end)):
                if chunk not in self._taken:
                    self._taken.add(chunk)
                    start = chunk << self._bits
                    place = self._spooled[number] + start - (run.first << self._bits)
                    yield BlockSpan(place, min(1 << self._bits, self._blocks - start))


def _joined(spans: Iterator[BlockSpan]) -> list[BlockSpan]:
    """Spans in their order, neighbours that follow each other as one."""
    joined: list[BlockSpan] = []
    for span in spans:
        if joined and joined[-1].end == span.first:
            joined[-1] = BlockSpan(joined[-1].first, joined[-1].length + span.length)
        else:
            joined.append(span)
    return joined
