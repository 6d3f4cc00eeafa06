"""The metadata of a finished tree: inodes are placed, then written.

Metadata begins behind the superblock, in block 0. The root's inode comes first (its nid has
16 bits), then shared xattrs. Then, directory by directory in preorder, the inodes of a
directory's children, so that listing a directory and walking a subtree read neighbouring
blocks. The last part of a directory and a symlink's target follow their inode; full blocks
of a directory follow the block being filled. All of it is held in memory until written.
"""

import hashlib
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.erofs.build.dirents import Dirent, directory_size, encode_directory
from lazyfs.erofs.build.order import BlockSpan, DataOrder
from lazyfs.erofs.build.space import MetadataSpace, round_up
from lazyfs.erofs.build.tree import UNPLACED, Directory, Inode, RegularFile, Symlink
from lazyfs.erofs.build.xattrs import (
    Xattr,
    XattrSet,
    body_icount,
    body_size,
    encode_body,
    encode_entry,
    entry_size,
    shared_ids,
    worth_sharing,
)
from lazyfs.erofs.crc32c import crc32c
from lazyfs.erofs.ondisk import (
    EROFS_FEATURE_COMPAT_MTIME,
    EROFS_FEATURE_COMPAT_SB_CHKSUM,
    EROFS_FEATURE_INCOMPAT_CHUNKED_FILE,
    EROFS_FT_BLKDEV,
    EROFS_FT_CHRDEV,
    EROFS_FT_DIR,
    EROFS_FT_FIFO,
    EROFS_FT_REG_FILE,
    EROFS_FT_SYMLINK,
    EROFS_I_DATALAYOUT_BIT,
    EROFS_I_VERSION_BIT,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_FLAT_PLAIN,
    EROFS_INODE_LAYOUT_COMPACT,
    EROFS_INODE_LAYOUT_EXTENDED,
    EROFS_ISLOT_SIZE,
    EROFS_NULL_ADDR_32,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    INODE_COMPACT,
    INODE_EXTENDED,
    SUPER_BLOCK,
    InodeCompactRecord,
    InodeExtendedRecord,
    SuperBlockRecord,
)
from lazyfs.errors import ConversionError

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS

_FILE_TYPES = {
    stat.S_IFREG: EROFS_FT_REG_FILE,
    stat.S_IFDIR: EROFS_FT_DIR,
    stat.S_IFCHR: EROFS_FT_CHRDEV,
    stat.S_IFBLK: EROFS_FT_BLKDEV,
    stat.S_IFIFO: EROFS_FT_FIFO,
    stat.S_IFLNK: EROFS_FT_SYMLINK,
}
_NS_PER_S = 1_000_000_000
_U16_MAX = 0xFFFF
_U32_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class FileData:
    """What is known of the file data that will follow the metadata."""

    blocks: int
    checksum: int
    """Some checksum of all of it; only the UUID depends on it."""
    order: DataOrder


class Metadata(NamedTuple):
    """Finished metadata."""

    data: bytearray
    """The first blocks of the image."""
    hot: tuple[BlockSpan, ...]
    """Which of them hold the inodes that were asked for, increasing."""


class _Layout:
    """Sizes and addresses, fixed before the first byte is written."""

    def __init__(self, root: Directory, data_alignment_bytes: int) -> None:
        self.inodes = _preorder(root)
        self.epoch_ns = _commonest_mtime(self.inodes)
        counts = Counter(xattr for inode in self.inodes for xattr in inode.attributes.xattrs)
        self._shared = frozenset(worth_sharing(counts))
        self._head_sizes: dict[XattrSet, int] = {}
        space = MetadataSpace(EROFS_SUPER_OFFSET + SUPER_BLOCK.size_bytes, BLOCK_SIZE)
        self._place(space, root)
        self.shared_position = space.slot(sum(map(entry_size, self._shared)))
        self.shared_ids: dict[Xattr, int] = shared_ids(sorted(self._shared), self.shared_position)
        for inode in self.inodes[1:]:
            self._place(space, inode)
        self.size_bytes = round_up(space.end, data_alignment_bytes)

    def is_extended(self, inode: Inode) -> bool:
        """Whether a compact inode would lose something."""
        attributes = inode.attributes
        return (
            attributes.mtime_ns != self.epoch_ns
            or attributes.uid > _U16_MAX
            or attributes.gid > _U16_MAX
            or inode.nlink > _U16_MAX
            or inode.size_bytes > _U32_MAX
        )

    def head_size(self, inode: Inode) -> int:
        """Bytes of the inode and its xattrs."""
        xattrs = inode.attributes.xattrs
        record = INODE_EXTENDED if self.is_extended(inode) else INODE_COMPACT
        if not xattrs:
            return record.size_bytes
        if xattrs not in self._head_sizes:
            self._head_sizes[xattrs] = body_size(xattrs, self._shared)
        return record.size_bytes + self._head_sizes[xattrs]

    def inline_size(self, inode: Inode) -> int:
        """Bytes of data that follow the inode in its block (``EROFS_INODE_FLAT_INLINE``)."""
        if not isinstance(inode, Directory | Symlink):
            return 0
        tail = inode.size_bytes % BLOCK_SIZE
        return tail if self.head_size(inode) + tail <= BLOCK_SIZE else 0

    def blocks_of(self, inode: Inode) -> list[BlockSpan]:
        """The blocks of an inode, with its directory entries, target or block map."""
        inline = self.inline_size(inode)
        length = self.head_size(inode) + inline
        if isinstance(inode, RegularFile) and inode.chunks is not None:
            length += inode.chunks.map_size
        first = inode.position // BLOCK_SIZE
        found = [BlockSpan(first, -(-(inode.position + length) // BLOCK_SIZE) - first)]
        if isinstance(inode, Directory | Symlink) and inode.size_bytes > inline:
            found.append(BlockSpan(inode.block, -(-(inode.size_bytes - inline) // BLOCK_SIZE)))
        return found

    def _place(self, space: MetadataSpace, inode: Inode) -> None:
        if isinstance(inode, Directory):
            inode.data_size = directory_size(_names(inode), BLOCK_SIZE)
        head, inline = self.head_size(inode), self.inline_size(inode)
        if isinstance(inode, RegularFile) and inode.chunks is not None:
            inode.position = space.slot(head + inode.chunks.map_size)
        else:
            inode.position = space.slot(head + inline, within_block=inline > 0)
        if isinstance(inode, Directory | Symlink):
            inode.block = space.blocks(-(-(inode.size_bytes - inline) // BLOCK_SIZE))


def _preorder(root: Directory) -> list[Inode]:
    """Every inode once: the children of a directory together, then its subtrees."""
    found: list[Inode] = [root]
    seen: set[Inode] = set()
    pending = [root]
    while pending:
        subdirectories: list[Directory] = []
        for _, inode in pending.pop().inodes():
            if inode.nlink > 1 and not isinstance(inode, Directory):
                if inode in seen:
                    continue
                seen.add(inode)
            found.append(inode)
            if isinstance(inode, Directory):
                subdirectories.append(inode)
        pending += reversed(subdirectories)
    return found


def _commonest_mtime(inodes: list[Inode]) -> int:
    """The time that compact inodes have; the earlier of two that are equally common."""
    counts = Counter(inode.attributes.mtime_ns for inode in inodes)
    return max(counts, key=lambda mtime_ns: (counts[mtime_ns], -mtime_ns))


def _names(directory: Directory) -> list[bytes]:
    return sorted((*directory.children, b".", b".."))


class _Writer:
    """Writes the inodes of a layout into one buffer."""

    def __init__(self, layout: _Layout, order: DataOrder) -> None:
        self._layout = layout
        self._order = order
        self.data = bytearray(layout.size_bytes)
        self._first_data_block = layout.size_bytes // BLOCK_SIZE
        self._bodies: dict[XattrSet, bytes] = {}
        self.has_chunks = False
        self._put(layout.shared_position, b"".join(map(encode_entry, layout.shared_ids)))
        for serial, inode in enumerate(layout.inodes, start=1):
            self._write(inode, serial)

    def _put(self, position: int, data: bytes) -> None:
        self.data[position : position + len(data)] = data

    def _write(self, inode: Inode, serial: int) -> None:
        inline = self._layout.inline_size(inode)
        data_layout = EROFS_INODE_FLAT_INLINE if inline else EROFS_INODE_FLAT_PLAIN
        address = inode.rdev
        data = b""
        if isinstance(inode, RegularFile):
            address = self._address(inode.data_block) if inode.size_bytes else EROFS_NULL_ADDR_32
            if inode.chunks is not None:
                self.has_chunks = True
                data_layout = EROFS_INODE_CHUNK_BASED
                address = inode.chunks.block_bits
                data = inode.chunks.encode(inode.data_block, self._address)
        elif isinstance(inode, Directory | Symlink):
            data = _directory_data(inode) if isinstance(inode, Directory) else inode.target
            in_blocks = data[: len(data) - inline]
            data = data[len(in_blocks) :]
            address = inode.block if in_blocks else EROFS_NULL_ADDR_32
            self._put(inode.block * BLOCK_SIZE, in_blocks)
        xattrs = inode.attributes.xattrs
        if xattrs not in self._bodies:
            self._bodies[xattrs] = encode_body(xattrs, self._layout.shared_ids)
        body = self._bodies[xattrs]
        record = self._record(inode, serial, data_layout, body_icount(len(body)), address)
        self._put(inode.position, record + body + data)

    def _address(self, spooled: int) -> int:
        """Block of the image that a block of the spool becomes."""
        return self._first_data_block + self._order.place(spooled)

    def _record(
        self, inode: Inode, serial: int, data_layout: int, icount: int, address: int
    ) -> bytes:
        attributes = inode.attributes
        mode = inode.file_type | attributes.permissions
        extended = self._layout.is_extended(inode)
        version = EROFS_INODE_LAYOUT_EXTENDED if extended else EROFS_INODE_LAYOUT_COMPACT
        i_format = version << EROFS_I_VERSION_BIT | data_layout << EROFS_I_DATALAYOUT_BIT
        if not extended:
            return INODE_COMPACT.encode(
                InodeCompactRecord(
                    i_format=i_format,
                    i_xattr_icount=icount,
                    i_mode=mode,
                    i_nb=inode.nlink,
                    i_size=inode.size_bytes,
                    i_mtime=0,
                    i_u=address,
                    i_ino=serial & _U32_MAX,
                    i_uid=attributes.uid,
                    i_gid=attributes.gid,
                    i_reserved=0,
                )
            )
        seconds, nanoseconds = divmod(attributes.mtime_ns, _NS_PER_S)
        return INODE_EXTENDED.encode(
            InodeExtendedRecord(
                i_format=i_format,
                i_xattr_icount=icount,
                i_mode=mode,
                i_nb=0,
                i_size=inode.size_bytes,
                i_u=address,
                i_ino=serial & _U32_MAX,
                i_uid=attributes.uid,
                i_gid=attributes.gid,
                i_mtime=seconds % (1 << 64),
                i_mtime_nsec=nanoseconds,
                i_nlink=inode.nlink,
                i_reserved2=bytes(16),
            )
        )


def _nid(inode: Inode) -> int:
    if inode.position == UNPLACED:
        raise AssertionError("an inode was not placed")
    return inode.position // EROFS_ISLOT_SIZE


def _directory_data(directory: Directory) -> bytes:
    dirents = [
        Dirent(b".", _nid(directory), EROFS_FT_DIR),
        Dirent(b"..", _nid(directory.parent), EROFS_FT_DIR),
    ]
    for name, inode in directory.inodes():
        dirents.append(Dirent(name, _nid(inode), _FILE_TYPES[inode.file_type]))
    return encode_directory(sorted(dirents), BLOCK_SIZE)


def encode_metadata(
    root: Directory,
    file_data: FileData,
    data_alignment_bytes: int,
    hot: Iterable[Inode] = (),
) -> Metadata:
    """The first blocks of the image, which the file data follows.

    Args:
        root: of the tree.
        file_data: what will follow.
        data_alignment_bytes: the metadata are padded with zeros to a multiple of this, itself
            a multiple of the block size.
        hot: inodes of the tree whose blocks are asked for.

    Raises:
        ConversionError: the image has more blocks than its format can address.
    """
    layout = _Layout(root, data_alignment_bytes)
    blocks = layout.size_bytes // BLOCK_SIZE + file_data.blocks
    if blocks >= EROFS_NULL_ADDR_32:
        raise ConversionError(
            f"image of {blocks} blocks of {BLOCK_SIZE} bytes, at most {EROFS_NULL_ADDR_32 - 1}"
        )
    writer = _Writer(layout, file_data.order)
    seconds, nanoseconds = divmod(layout.epoch_ns, _NS_PER_S)
    superblock = SuperBlockRecord(
        magic=EROFS_SUPER_MAGIC_V1,
        checksum=0,
        feature_compat=EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME,
        blkszbits=BLOCK_BITS,
        sb_extslots=0,
        rb=_nid(root),
        inos=len(layout.inodes),
        epoch=seconds % (1 << 64),
        fixed_nsec=nanoseconds,
        blocks_lo=blocks,
        meta_blkaddr=0,
        xattr_blkaddr=0,
        uuid=bytes(16),
        volume_name=bytes(16),
        feature_incompat=EROFS_FEATURE_INCOMPAT_CHUNKED_FILE if writer.has_chunks else 0,
        u1=0,
        extra_devices=0,
        devt_slotoff=0,
        dirblkbits=0,
        xattr_prefix_count=0,
        xattr_prefix_start=0,
        packed_nid=0,
        xattr_filter_reserved=0,
        ishare_xattr_prefix_id=0,
        reserved=bytes(2),
        build_time=0,
        rootnid_8b=0,
        reserved2=0,
    )
    data = writer.data
    _put_superblock(data, superblock)
    superblock = superblock._replace(uuid=_content_uuid(data, file_data))
    _put_superblock(data, superblock)
    checksum = crc32c(bytes(data[EROFS_SUPER_OFFSET:BLOCK_SIZE]))
    _put_superblock(data, superblock._replace(checksum=checksum))
    return Metadata(data, _hot_blocks(layout, hot))


def _hot_blocks(layout: _Layout, inodes: Iterable[Inode]) -> tuple[BlockSpan, ...]:
    """The blocks of some inodes, and the first, which has the superblock."""
    spans = sorted(span for inode in inodes for span in layout.blocks_of(inode))
    found = [BlockSpan(0, 1)] if spans else []
    for span in spans:
        last = found[-1]
        if span.first <= last.end:
            found[-1] = BlockSpan(last.first, max(last.end, span.end) - last.first)
        else:
            found.append(span)
    return tuple(found)


def _put_superblock(data: bytearray, superblock: SuperBlockRecord) -> None:
    end = EROFS_SUPER_OFFSET + SUPER_BLOCK.size_bytes
    data[EROFS_SUPER_OFFSET:end] = SUPER_BLOCK.encode(superblock)


def _content_uuid(metadata: bytearray, file_data: FileData) -> bytes:
    """A UUID (RFC 9562, version 8) that depends on nothing but the image's content."""
    digest = hashlib.sha256(metadata)
    digest.update(file_data.checksum.to_bytes(4, "little"))
    uuid = bytearray(digest.digest()[:16])
    uuid[6] = uuid[6] & 0x0F | 0x80
    uuid[8] = uuid[8] & 0x3F | 0x80
    return bytes(uuid)
