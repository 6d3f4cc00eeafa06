"""Which run of a compressed file holds an offset: extents by logical clusters."""

from typing import Protocol

from lazyfs.erofs import ondisk
from lazyfs.erofs.compressed.extents import EncodedExtents
from lazyfs.erofs.compressed.header import MapHeader, decode_map_header, header_address
from lazyfs.erofs.compressed.lclusters import HEAD1, NONHEAD, PLAIN, Lcluster, LclusterIndex
from lazyfs.erofs.compressed.runs import CompressedRun, Encoded, Fragment, stored_plainly
from lazyfs.erofs.compressed.window import ReadWindow, Windows
from lazyfs.erofs.extents import METABOX
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.steps import Steps


class CompressedMap(Protocol):
    """The map of one compressed file."""

    def runs_at(self, offset: int) -> Steps[list[CompressedRun]]:
        """The runs of the extent that holds ``offset``, which is inside the file.

        There is at least one run; addresses are those of the unified address space.

        Raises:
            ImageFormatError: the index is broken.
            UnsupportedFeatureError: sizes beyond what the format allows.
        """
        ...


def open_compressed_map(
    superblock: Superblock, inode: Inode, read_window: ReadWindow
) -> Steps[CompressedMap]:
    """Read the map header of a compressed file, and the tail of its index if it needs that.

    Raises:
        ImageFormatError, UnsupportedFeatureError: as the map itself.
    """
    windows = Windows(superblock, inode, read_window)
    data = yield from windows.read(header_address(inode), ondisk.MAP_HEADER.size_bytes)
    header = decode_map_header(superblock, inode, data)
    if header.is_whole_fragment:
        return WholeFragment(inode, header.fragment_offset)
    if header.extent_count >= 0:
        return EncodedExtents(superblock, inode, header, windows)
    clusters = LogicalClusters(superblock, inode, header, windows)
    return (yield from clusters.with_tail())


class WholeFragment:
    """The map of a file that is one fragment."""

    def __init__(self, inode: Inode, packed_offset: int) -> None:
        """Name the fragment."""
        self._run = Fragment(0, inode.size_bytes, packed_offset)

    def runs_at(self, offset: int) -> Steps[list[CompressedRun]]:
        """The only run (see ``CompressedMap``)."""
        return [self._run]
        yield  # a generator like the others


class LogicalClusters:
    """The map of a file whose index tells of each logical cluster."""

    def __init__(
        self, superblock: Superblock, inode: Inode, header: MapHeader, windows: Windows
    ) -> None:
        """Lay out the index; ``with_tail`` makes it usable."""
        self._superblock = superblock
        self._inode = inode
        self._header = header
        self._bits = header.lcluster_bits
        self._index = LclusterIndex(superblock, inode, header)
        self._windows = windows
        self._max_clusters = (ondisk.Z_EROFS_PCLUSTER_MAX_DSIZE >> self._bits) + 1
        self._tail = -1
        self._tail_address = 0
        self._fragment_offset = header.fragment_offset

    def with_tail(self) -> "Steps[LogicalClusters]":
        """Find the last extent if it is not a pcluster like the others.

        Raises:
            ImageFormatError: the index is broken.
        """
        header = self._header
        if header.inline_bytes or header.fragment_offset >= 0:
            last = self._inode.size_bytes - 1
            span = self._index.span(last >> self._bits)
            # an inline pcluster follows the record or pack of the last cluster
            self._tail_address = span.address + span.length
            self._tail, head = yield from self._head_of(last)
            full = self._inode.layout == ondisk.EROFS_INODE_COMPRESSED_FULL
            if full and header.fragment_offset >= 0:
                self._fragment_offset |= head.block << 32
        return self

    def runs_at(self, offset: int) -> Steps[list[CompressedRun]]:
        """The runs of the extent at ``offset`` (see ``CompressedMap``)."""
        size = self._inode.size_bytes
        if self._fragment_offset >= 0 and not self._tail:
            return [Fragment(0, size, self._fragment_offset)]
        number, head = yield from self._head_of(offset)
        start = (number << self._bits) + head.start
        if number == self._tail:
            return self._tail_runs(head, start, size - start)
        stored_bytes = (yield from self._stored_blocks(number, head)) << self._superblock.block_bits
        length = (yield from self._end(number)) - start
        if start + length <= offset:
            raise self._broken(number, "its clusters disagree about where it ends")
        address = head.block << self._superblock.block_bits
        return self._runs(head, Encoded(start, length, 0, address, stored_bytes, 0, head.partial))

    def _tail_runs(self, head: Lcluster, start: int, length: int) -> list[CompressedRun]:
        if self._fragment_offset >= 0:
            return [Fragment(start, length, self._fragment_offset)]
        stored_bytes = self._header.inline_bytes
        block_bytes = self._superblock.block_bytes
        if self._tail_address % block_bytes + stored_bytes > block_bytes:
            raise self._broken(self._tail, "the inline pcluster crosses a block")
        device = METABOX if self._inode.in_metabox else 0
        return self._runs(
            head, Encoded(start, length, device, self._tail_address, stored_bytes, 0, head.partial)
        )

    def _runs(self, head: Lcluster, extent: Encoded) -> list[CompressedRun]:
        if head.type == PLAIN:
            interlaced = self._header.advise & ondisk.Z_EROFS_ADVISE_INTERLACED_PCLUSTER
            return stored_plainly(self._superblock, self._inode, extent, bool(interlaced))
        algorithm = self._header.algorithms[0 if head.type == HEAD1 else 1]
        return [extent._replace(algorithm=algorithm).checked(self._superblock, self._inode)]

    def _head_of(self, offset: int) -> Steps[tuple[int, Lcluster]]:
        """The lcluster in which the extent at ``offset`` begins, and its number."""
        number = first = offset >> self._bits
        lcluster = yield from self._lcluster(number)
        if lcluster.type != NONHEAD and lcluster.start <= offset & (1 << self._bits) - 1:
            return number, lcluster
        back = lcluster.back if lcluster.type == NONHEAD else 1
        while True:  # goes back at each step, as far as the largest extent reaches
            if not 0 < back <= number or first - number + back > self._max_clusters:
                raise self._broken(first, f"its HEAD would be {back} before {number:#x}")
            number -= back
            lcluster = yield from self._lcluster(number)
            if lcluster.type != NONHEAD:
                return number, lcluster
            back = lcluster.back

    def _stored_blocks(self, number: int, head: Lcluster) -> Steps[int]:
        if head.type == HEAD1:
            big = self._header.advise & ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_1
        else:
            big = self._header.advise & ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_2
        if not big or number + 1 << self._bits >= self._inode.size_bytes:
            return 1
        following = yield from self._lcluster(number + 1)
        if following.type != NONHEAD:
            return 1
        if following.back != 1 or not following.stored_blocks:
            raise self._broken(number, "the cluster behind it does not count its blocks")
        return following.stored_blocks

    def _end(self, number: int) -> Steps[int]:
        """Where in the file the extent ends that begins in lcluster ``number``."""
        size = self._inode.size_bytes
        first = number
        number += 1
        while number << self._bits < size:  # goes ahead at each step, likewise
            lcluster = yield from self._lcluster(number)
            if lcluster.type != NONHEAD:
                return min((number << self._bits) + lcluster.start, size)
            number += lcluster.ahead or 1
            if number - first > self._max_clusters + 1:
                raise UnsupportedFeatureError(
                    f"nid {self._inode.nid:#x}: extent at lcluster {first:#x} of more than "
                    f"{ondisk.Z_EROFS_PCLUSTER_MAX_DSIZE} bytes"
                )
        return size

    def _lcluster(self, number: int) -> Steps[Lcluster]:
        span = self._index.span(number)
        data, offset = yield from self._windows.at(span.address)
        return self._index.decode(span, data, offset)

    def _broken(self, number: int, why: str) -> ImageFormatError:
        return ImageFormatError(f"nid {self._inode.nid:#x}: extent at lcluster {number:#x}: {why}")
