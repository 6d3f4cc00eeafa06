"""Runs of file data, and the flat and chunk-based layouts that give them."""

from typing import NamedTuple, TypeAlias

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.devices import AddressSpace
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError

METABOX = -1
"""In place of a device number: the bytes are data of the metabox inode."""


class Extent(NamedTuple):
    """``length`` bytes of a file that lie unchanged on a device."""

    offset: int
    """In the file, in bytes; likewise in the other kinds."""
    length: int
    device: int
    """As in ``Need``, or ``METABOX``."""
    address: int


class Hole(NamedTuple):
    """``length`` zero bytes of a file."""

    offset: int
    length: int


Run: TypeAlias = Extent | Hole


def flat_run(superblock: Superblock, inode: Inode, offset: int, end: int) -> Run:
    """The run of a flat inode that begins at ``offset`` and goes up to ``end`` at most.

    Both are inside the file. Device 0 means the unified address space.

    Raises:
        ImageFormatError: no such address, or inline data that does not end in the block
            where it begins.
    """
    size = inode.size_bytes
    if inode.layout == ondisk.EROFS_INODE_FLAT_PLAIN:
        if inode.data < 0:
            return Hole(offset, end - offset)
        head_bytes = size
    else:
        head_bytes = (size - 1) >> superblock.block_bits << superblock.block_bits
    if offset < head_bytes:
        start = inode.data << superblock.block_bits
        if start + size > limits.MAX_ADDRESS:
            raise ImageFormatError(f"nid {inode.nid:#x}: {size} bytes at {start}")
        return Extent(offset, min(head_bytes, end) - offset, 0, start + offset)
    tail = inode.tail_address
    if tail % superblock.block_bytes + size - head_bytes > superblock.block_bytes:
        raise ImageFormatError(f"nid {inode.nid:#x}: inline data crosses a block at {tail}")
    device = METABOX if inode.in_metabox else 0
    return Extent(offset, end - offset, device, tail + offset - head_bytes)


class ChunkMap(NamedTuple):
    """Where a chunk-based inode keeps its map, and the form of the map."""

    chunk_bits: int
    entry_bytes: int
    address: int
    """Byte address of the entry of the first chunk."""
    address_mask: int


def chunk_map(superblock: Superblock, inode: Inode) -> ChunkMap:
    """The map of a chunk-based inode."""
    indexes = inode.data & ondisk.EROFS_CHUNK_FORMAT_INDEXES
    wide = inode.data & ondisk.EROFS_CHUNK_FORMAT_48BIT
    unit = ondisk.INODE_CHUNK_INDEX.size_bytes if indexes else ondisk.EROFS_BLOCK_MAP_ENTRY_SIZE
    return ChunkMap(
        superblock.block_bits + (inode.data & ondisk.EROFS_CHUNK_FORMAT_BLKBITS_MASK),
        unit,
        -(-inode.tail_address // unit) * unit,
        ondisk.EROFS_NULL_ADDR_48 if indexes and wide else ondisk.EROFS_NULL_ADDR_32,
    )


def chunk_runs(
    superblock: Superblock,
    inode: Inode,
    chunks: ChunkMap,
    space: AddressSpace,
    first: int,
    entries: bytes,
) -> list[Run]:
    """The runs of consecutive chunks, or of the first of them; neighbours are merged.

    Args:
        superblock: of the image.
        inode: the file.
        chunks: its chunk map.
        space: resolves device ids.
        first: number of the first chunk.
        entries: the map's bytes for the chunks from there on.

    Raises:
        ImageFormatError: a chunk is on no device.
    """
    runs: list[Run] = []
    chunk_bytes = 1 << chunks.chunk_bits
    offset = first << chunks.chunk_bits
    for position in range(0, len(entries), chunks.entry_bytes):
        if len(runs) > limits.MAX_MAP_ENTRIES:  # chunks that cross the edges of many devices
            break
        device_id = 0
        if chunks.entry_bytes == ondisk.EROFS_BLOCK_MAP_ENTRY_SIZE:
            block = int.from_bytes(entries[position : position + 4], "little")
        else:
            raw = ondisk.INODE_CHUNK_INDEX.decode(entries, position)
            device_id = raw.device_id
            block = (raw.startblk_hi << 32 | raw.startblk_lo) & chunks.address_mask
        length = min(chunk_bytes, inode.size_bytes - offset)
        if block == chunks.address_mask:
            append_run(runs, Hole(offset, length))
        else:
            address = block << superblock.block_bits
            where = offset
            for place in space.resolve(device_id, address, length):
                append_run(runs, Extent(where, place.length, place.device, place.address))
                where += place.length
        offset += length
    return runs


def append_run(runs: list[Run], run: Run) -> None:
    """Add a run at the end, as part of the last one if they lie together."""
    if runs:
        last = runs[-1]
        if isinstance(run, Hole):
            if isinstance(last, Hole):
                runs[-1] = Hole(last.offset, last.length + run.length)
                return
        elif (
            isinstance(last, Extent)
            and last.device == run.device
            and last.address + last.length == run.address
        ):
            runs[-1] = Extent(last.offset, last.length + run.length, run.device, last.address)
            return
    runs.append(run)
