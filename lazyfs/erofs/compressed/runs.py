"""Kinds of runs that only compressed files have."""

from typing import NamedTuple, TypeAlias

from lazyfs.erofs import ondisk
from lazyfs.erofs.extents import Extent, Hole
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError


class Encoded(NamedTuple):
    """``length`` bytes of a file that a pcluster decompresses to."""

    offset: int
    length: int
    device: int
    """As in ``Need``, or ``METABOX``."""
    address: int
    stored_bytes: int
    algorithm: int
    """``Z_EROFS_COMPRESSION_*``."""
    partial: bool
    """The pcluster holds more than this."""

    def checked(self, superblock: Superblock, inode: Inode) -> "Encoded":
        """The run itself.

        Raises:
            ImageFormatError: an algorithm that the superblock does not announce.
            UnsupportedFeatureError: larger than the format allows.
        """
        if not superblock.compression_algorithms >> self.algorithm & 1:
            raise ImageFormatError(f"nid {inode.nid:#x}: algorithm {self.algorithm}")
        if (
            self.stored_bytes > ondisk.Z_EROFS_PCLUSTER_MAX_SIZE
            or self.length > ondisk.Z_EROFS_PCLUSTER_MAX_DSIZE
        ):
            raise UnsupportedFeatureError(
                f"nid {inode.nid:#x}: pcluster of {self.stored_bytes} bytes for {self.length}"
            )
        return self


class Fragment(NamedTuple):
    """``length`` bytes of a file that are data of the packed inode."""

    offset: int
    length: int
    packed_offset: int


CompressedRun: TypeAlias = Encoded | Fragment | Extent | Hole


def stored_plainly(
    superblock: Superblock, inode: Inode, extent: Encoded, interlaced: bool
) -> list[CompressedRun]:
    """The runs of an extent whose pcluster is not compressed.

    In an interlaced one each byte keeps its offset within the block: the extent begins in
    the middle of the pcluster's last block and goes on at the pcluster's start.

    Raises:
        ImageFormatError: the pcluster is too small.
    """
    start, length, device, address, stored_bytes, _, _ = extent
    block_bytes = superblock.block_bytes
    if length > stored_bytes or (interlaced and stored_bytes < block_bytes):
        raise ImageFormatError(
            f"nid {inode.nid:#x}: {length} plain bytes in a pcluster of {stored_bytes}"
        )
    if not interlaced:
        return [Extent(start, length, device, address)]
    right = min(block_bytes - start % block_bytes, length)
    first = address + stored_bytes - block_bytes + start % block_bytes
    runs: list[CompressedRun] = [Extent(start, right, device, first)]
    if length > right:
        runs.append(Extent(start + right, length - right, device, address))
    return runs
