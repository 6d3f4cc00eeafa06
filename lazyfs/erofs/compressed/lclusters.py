"""Index records of logical clusters, full (8 bytes each) and compact (4 or 2 bytes each).

A logical cluster is a fixed piece of a file, mostly one block. A HEAD or PLAIN one has the
start of an extent in it, a NONHEAD one says how far away the nearest HEADs are.
"""

from typing import NamedTuple

from lazyfs.erofs import ondisk
from lazyfs.erofs.compressed.header import MapHeader, header_address
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError

PLAIN = ondisk.Z_EROFS_LCLUSTER_TYPE_PLAIN
HEAD1 = ondisk.Z_EROFS_LCLUSTER_TYPE_HEAD1
NONHEAD = ondisk.Z_EROFS_LCLUSTER_TYPE_NONHEAD
HEAD2 = ondisk.Z_EROFS_LCLUSTER_TYPE_HEAD2

_CBLKCNT = ondisk.Z_EROFS_LI_D0_CBLKCNT
_CBLKCNT_BITS = 12
_MAX_COMPACT_BITS = 14
_MAX_COMPACT_2B_BITS = 12
_PACK_ALIGN = 32
_PACK_2B_COUNT = 16
_PACK_4B_COUNT = 2
_BLOCK_ADDRESS_BYTES = 4


class Lcluster(NamedTuple):
    """One logical cluster."""

    type: int
    """``PLAIN``, ``HEAD1``, ``NONHEAD`` or ``HEAD2``."""
    start: int
    """Where in the cluster the extent of a HEAD begins, in bytes."""
    block: int
    """First block of the pcluster of a HEAD."""
    partial: bool
    """The extent is only the first part of what the pcluster holds."""
    back: int
    """NONHEAD: how many clusters before it the HEAD is."""
    ahead: int
    """NONHEAD: how many clusters behind it the next HEAD is, or nearer."""
    stored_blocks: int
    """NONHEAD: blocks of the pcluster; 0: it does not say."""


class Span(NamedTuple):
    """The index bytes that one lcluster is decoded from: a record or a pack."""

    address: int
    length: int
    number: int
    """Which of the pack's records it is."""


class LclusterIndex:
    """Where records lie in the index of one file, and what they mean."""

    def __init__(self, superblock: Superblock, inode: Inode, header: MapHeader) -> None:
        """Lay out the index.

        Raises:
            UnsupportedFeatureError: clusters too large for compact records.
        """
        self._nid = inode.nid
        self._bits = header.lcluster_bits
        self._is_big = bool(header.advise & ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_1)
        self._is_any_big = self._is_big or bool(
            header.advise & ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_2
        )
        self._is_full = inode.layout == ondisk.EROFS_INODE_COMPRESSED_FULL
        base = header_address(inode) + ondisk.MAP_HEADER.size_bytes
        if self._is_full:
            self._base = base + ondisk.MAP_HEADER.size_bytes
            return
        if self._bits > _MAX_COMPACT_BITS:
            raise UnsupportedFeatureError(f"nid {inode.nid:#x}: clusters of 2^{self._bits} bytes")
        self._base = base
        total = -(-inode.size_bytes >> superblock.block_bits)
        self._pack_address = -1
        self._records: list[tuple[int, int]] = []
        self._count_4b = -base % _PACK_ALIGN // 4
        self._count_2b = 0
        if header.advise & ondisk.Z_EROFS_ADVISE_COMPACTED_2B and self._count_4b < total:
            self._count_2b = (total - self._count_4b) // _PACK_2B_COUNT * _PACK_2B_COUNT
        if self._count_2b and self._bits > _MAX_COMPACT_2B_BITS:
            raise UnsupportedFeatureError(f"nid {inode.nid:#x}: 2-byte records, 2^{self._bits}")
        self._total = total

    def span(self, number: int) -> Span:
        """Where lcluster ``number`` is told; spans never cross an aligned 512-byte line.

        Raises:
            ImageFormatError: behind the end of the file.
        """
        if self._is_full:
            record_bytes = ondisk.LCLUSTER_INDEX.size_bytes
            return Span(self._base + number * record_bytes, record_bytes, 0)
        if number >= self._total:
            raise ImageFormatError(f"nid {self._nid:#x}: no lcluster {number:#x}")
        base, record_bytes, count = self._base, 4, _PACK_4B_COUNT
        if number >= self._count_4b:
            base += self._count_4b * 4
            number -= self._count_4b
            if number < self._count_2b:
                record_bytes, count = 2, _PACK_2B_COUNT
            else:
                base += self._count_2b * 2
                number -= self._count_2b
        pack_bytes = record_bytes * count
        position = base + number * record_bytes
        inside = position % pack_bytes
        return Span(position - inside, pack_bytes, inside // record_bytes)

    def decode(self, span: Span, data: bytes, offset: int) -> Lcluster:
        """Decode the lcluster of a span whose bytes begin at ``offset`` of ``data``.

        Raises:
            ImageFormatError: numbers that cannot be.
        """
        if self._is_full:
            lcluster = self._decode_full(data, offset)
        else:
            lcluster = self._decode_compact(span, data[offset : offset + span.length])
        if lcluster.type != NONHEAD and lcluster.start >> self._bits:
            raise self._broken(f"starts at {lcluster.start}")
        return lcluster

    def _decode_full(self, data: bytes, offset: int) -> Lcluster:
        advise, start, value = ondisk.LCLUSTER_INDEX.decode(data, offset)
        kind = advise & ondisk.Z_EROFS_LI_LCLUSTER_TYPE_MASK
        if kind != NONHEAD:
            partial = bool(advise & ondisk.Z_EROFS_LI_PARTIAL_REF)
            return Lcluster(kind, start, value, partial, 0, 0, 0)
        back, ahead = value & 0xFFFF, value >> 16
        if back & _CBLKCNT:
            if not self._is_any_big:
                raise self._broken("a block count without big pclusters")
            return Lcluster(kind, 0, 0, False, 1, ahead, back & ~_CBLKCNT)
        return Lcluster(kind, 0, 0, False, back, ahead, 0)

    def _decode_compact(self, span: Span, pack: bytes) -> Lcluster:
        if span.address != self._pack_address:
            self._records = self._unpack(pack)
            self._pack_address = span.address
        records, number = self._records, span.number
        low, kind = records[number]
        if kind != NONHEAD:
            block = int.from_bytes(pack[-_BLOCK_ADDRESS_BYTES:], "little")
            block += self._blocks_before(records, number)
            return Lcluster(kind, low, block, False, 0, 0, 0)
        ahead = _ahead(records, number)
        if low & _CBLKCNT:
            if not self._is_big:
                raise self._broken("a block count without big pclusters")
            return Lcluster(kind, 0, 0, False, 1, ahead, low & ~_CBLKCNT)
        if number + 1 == len(records):
            # the last record of a pack tells the distance ahead: go by the one before it
            low, kind_before = records[number - 1]
            if kind_before != NONHEAD:
                low = 0
            elif low & _CBLKCNT:
                low = 1
            low += 1
        return Lcluster(NONHEAD, 0, 0, False, low, ahead, 0)

    def _unpack(self, pack: bytes) -> list[tuple[int, int]]:
        """The (low bits, type) of each record of a pack."""
        if len(pack) == 2 * _PACK_2B_COUNT:
            count = _PACK_2B_COUNT
        elif len(pack) == 4 * _PACK_4B_COUNT:
            count = _PACK_4B_COUNT
        else:
            raise self._broken(f"pack of {len(pack)} bytes")
        low_bits = max(self._bits, _CBLKCNT_BITS)
        low_mask = (1 << low_bits) - 1
        record_bits = (len(pack) - _BLOCK_ADDRESS_BYTES) * 8 // count
        packed = int.from_bytes(pack, "little")
        return [
            (packed >> shift & low_mask, packed >> shift + low_bits & 3)
            for shift in range(0, count * record_bits, record_bits)
        ]

    def _blocks_before(self, records: list[tuple[int, int]], number: int) -> int:
        """Blocks of the pack's pclusters before that of record ``number``.

        Without big pclusters each has one block, and the pack's address is one too low.
        """
        blocks = 0 if self._is_big else 1
        while number > 0:  # goes down at each step
            number -= 1
            low, kind = records[number]
            if not self._is_big:
                if kind == NONHEAD:
                    number -= low
                if number >= 0:
                    blocks += 1
            elif kind != NONHEAD:
                blocks += 1
            elif low & _CBLKCNT:
                number -= 1
                blocks += low & ~_CBLKCNT
            elif low <= 1:
                raise self._broken("a NONHEAD without its block count")
            else:
                number -= low - 2
        return blocks

    def _broken(self, why: str) -> ImageFormatError:
        return ImageFormatError(f"nid {self._nid:#x}: compression index: {why}")


def _ahead(records: list[tuple[int, int]], number: int) -> int:
    """Distance from NONHEAD ``number`` to the next HEAD, or to behind the pack."""
    for distance, (_, kind) in enumerate(records[number:]):
        if kind != NONHEAD:
            return distance
    low = records[-1][0]
    distance = len(records) - number
    return distance if low & _CBLKCNT or not low else distance + low - 1
