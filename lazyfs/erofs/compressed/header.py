"""The map header in front of the index of a compressed file."""

from typing import NamedTuple

from lazyfs.erofs import ondisk
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError

_CLUSTERBITS_MASK = 0x0F
_WHOLE_FRAGMENT_BIT = 63
_BIG_PCLUSTERS = ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_1 | ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_2


class MapHeader(NamedTuple):
    """``struct z_erofs_map_header``, its unions resolved."""

    advise: int
    """``Z_EROFS_ADVISE_*``."""
    lcluster_bits: int
    algorithms: tuple[int, int]
    """Of HEAD1 and HEAD2."""
    fragment_offset: int
    """In the packed inode; -1: the file has no fragment."""
    is_whole_fragment: bool
    """All of the file is the fragment; there is no index."""
    inline_bytes: int
    """Size of the last pcluster behind the index; 0: it is elsewhere."""
    extent_count: int
    """Encoded extents; -1: there are logical clusters instead."""


def header_address(inode: Inode) -> int:
    """Byte address of the map header."""
    return -(-inode.tail_address // 8) * 8


def decode_map_header(superblock: Superblock, inode: Inode, data: bytes) -> MapHeader:
    """Decode the 8 bytes at ``header_address``.

    Raises:
        ImageFormatError: hints that contradict each other.
    """
    raw = ondisk.MAP_HEADER.decode(data)
    if raw.h_clusterbits >> ondisk.Z_EROFS_FRAGMENT_INODE_BIT:
        offset = int.from_bytes(data, "little") ^ 1 << _WHOLE_FRAGMENT_BIT
        return MapHeader(0, superblock.block_bits, (0, 0), offset, True, 0, -1)
    advise = raw.h_advise
    full = inode.layout == ondisk.EROFS_INODE_COMPRESSED_FULL
    lcluster_bits = superblock.block_bits + (raw.h_clusterbits & _CLUSTERBITS_MASK)
    has_fragment = advise & ondisk.Z_EROFS_ADVISE_FRAGMENT_PCLUSTER
    if full and advise & ondisk.Z_EROFS_ADVISE_EXTENTS:
        count = raw.h_fragmentoff | (raw.h_algorithmtype | raw.h_clusterbits << 8) << 32
        return MapHeader(advise, lcluster_bits, (0, 0), -1, False, 0, count)
    big = advise & _BIG_PCLUSTERS
    if big and not superblock.has_incompat(ondisk.EROFS_FEATURE_INCOMPAT_BIG_PCLUSTER):
        raise ImageFormatError(f"nid {inode.nid:#x}: big pclusters in an image without them")
    if not full and big not in (0, _BIG_PCLUSTERS):
        raise ImageFormatError(f"nid {inode.nid:#x}: compact index, big pclusters {big:#x}")
    inline_bytes = 0
    if not has_fragment and advise & ondisk.Z_EROFS_ADVISE_INLINE_PCLUSTER:
        inline_bytes = raw.h_fragmentoff >> 16
    return MapHeader(
        advise,
        lcluster_bits,
        (raw.h_algorithmtype & 15, raw.h_algorithmtype >> 4),
        raw.h_fragmentoff if has_fragment else -1,
        False,
        inline_bytes,
        -1,
    )
