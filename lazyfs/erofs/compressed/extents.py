"""Encoded extents: an index with one record for each extent (48-bit images)."""

import struct

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.compressed.header import MapHeader, header_address
from lazyfs.erofs.compressed.runs import CompressedRun, Encoded, Fragment, stored_plainly
from lazyfs.erofs.compressed.window import Windows
from lazyfs.erofs.extents import Hole
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.steps import Steps

_SUM_BYTES = 8
_LENGTH_BYTES = 4


class EncodedExtents:
    """The map of a file with encoded extents.

    Records of 4 bytes have the stored length of an extent, with 8 its address too; their
    extents have a fixed length in the file. Those of 16 and 32 bytes have any, and are
    searched for by their start in the file.
    """

    def __init__(
        self, superblock: Superblock, inode: Inode, header: MapHeader, windows: Windows
    ) -> None:
        """Lay out the records."""
        self._superblock = superblock
        self._inode = inode
        self._advise = header.advise
        self._bits = header.lcluster_bits
        self._count = header.extent_count
        shift = header.advise >> ondisk.Z_EROFS_ADVISE_EXTRECSZ_BIT
        self._record_bytes = 4 << (shift & ondisk.Z_EROFS_ADVISE_EXTRECSZ_MASK)
        end = header_address(inode) + ondisk.MAP_HEADER.size_bytes
        self._base = -(-end // self._record_bytes) * self._record_bytes
        self._windows = windows
        self._summed = (0, 0)

    def runs_at(self, offset: int) -> Steps[list[CompressedRun]]:
        """The runs of the extent at ``offset`` (see ``CompressedMap``)."""
        size = self._inode.size_bytes
        if self._record_bytes >= 16:
            start, end, plen, address = yield from self._search(offset)
        else:
            number = offset >> self._bits
            start = number << self._bits
            end = min(start + (1 << self._bits), size)
            if self._record_bytes == 8:
                record = yield from self._windows.read(self._base + number * 8, 8)
                plen, address = struct.unpack("<II", record)
            else:
                plen, address = yield from self._sum(number)
        length = end - start
        is_last = end == size
        if is_last and self._advise & ondisk.Z_EROFS_ADVISE_FRAGMENT_PCLUSTER:
            high = address << 32 if self._record_bytes > 4 else 0
            return [Fragment(start, length, plen | high)]
        stored_bytes = plen & ondisk.Z_EROFS_EXTENT_PLEN_MASK
        if not stored_bytes:
            return [Hole(start, length)]
        partial = bool(plen & ondisk.Z_EROFS_EXTENT_PLEN_PARTIAL)
        algorithm = (plen >> ondisk.Z_EROFS_EXTENT_PLEN_FMT_BIT) - 1
        extent = Encoded(start, length, 0, address, stored_bytes, algorithm, partial)
        if algorithm >= 0:
            return [extent.checked(self._superblock, self._inode)]
        aligned = not (address | stored_bytes) % self._superblock.block_bytes
        interlaced = aligned and self._advise & ondisk.Z_EROFS_ADVISE_INTERLACED_PCLUSTER
        return stored_plainly(self._superblock, self._inode, extent, bool(interlaced))

    def _search(self, offset: int) -> Steps[tuple[int, int, int, int]]:
        """(start, end, plen, address) of the record at ``offset``; before the first: a hole."""
        low, high = 0, self._count
        start, end = 0, self._inode.size_bytes
        plen = address = 0
        while low < high:  # halves each time
            middle = (low + high) // 2
            at = self._base + middle * self._record_bytes
            record = yield from self._windows.read(at, self._record_bytes)
            found_plen, pstart_lo, pstart_hi, la = struct.unpack_from("<4I", record)
            if self._record_bytes == 32:
                la |= int.from_bytes(record[16:20], "little") << 32
            if la > offset:
                if la > end:
                    raise ImageFormatError(
                        f"nid {self._inode.nid:#x}: extent {middle} at {la}, behind {end}"
                    )
                high, end = middle, la
            else:
                if la < start:
                    raise ImageFormatError(
                        f"nid {self._inode.nid:#x}: extent {middle} at {la}, before {start}"
                    )
                low, start = middle + 1, la
                plen, address = found_plen, pstart_lo | pstart_hi << 32
        return start, end, plen, address

    def _sum(self, number: int) -> Steps[tuple[int, int]]:
        """(plen, address) of record ``number``, adding up the lengths before it."""
        if number > limits.MAX_SUMMED_EXTENTS:
            raise UnsupportedFeatureError(
                f"nid {self._inode.nid:#x}: extent {number} of more than "
                f"{limits.MAX_SUMMED_EXTENTS}"
            )
        index, address = self._summed
        if index > number or not index:
            data = yield from self._windows.read(self._base, _SUM_BYTES)
            index, address = 0, int.from_bytes(data, "little")
        while True:  # one window at a time, up to the limit
            at = self._base + _SUM_BYTES + index * _LENGTH_BYTES
            data, offset = yield from self._windows.at(at)
            here = (len(data) - offset) // _LENGTH_BYTES
            if not here:
                raise ImageFormatError(f"nid {self._inode.nid:#x}: no extent {index}")
            if number - index < here:
                break
            address += _stored_bytes(data, offset, here)
            index += here
        self._summed = index, address
        address += _stored_bytes(data, offset, number - index)
        (plen,) = struct.unpack_from("<I", data, offset + (number - index) * _LENGTH_BYTES)
        return plen, address


def _stored_bytes(data: bytes, offset: int, count: int) -> int:
    """The sum of the stored lengths of ``count`` records."""
    mask = ondisk.Z_EROFS_EXTENT_PLEN_MASK
    return sum(plen & mask for plen in struct.unpack_from(f"<{count}I", data, offset))
