"""Inodes: where they lie, and decoding of both forms."""

import stat
from typing import NamedTuple

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.model import Attributes, Nid

_NULL_ADDRESS_32 = 0xFFFFFFFF
_NULL_ADDRESS_48 = 0xFFFFFFFFFFFF
_SPECIAL_TYPES = frozenset((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_KNOWN_TYPES = _SPECIAL_TYPES | {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}


class Inode(NamedTuple):
    """One inode; compact and extended ones look the same here."""

    nid: Nid
    mode: int
    """File type and permission bits, as ``st_mode``."""
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    mtime_s: int
    mtime_ns: int
    layout: int
    """``EROFS_INODE_FLAT_PLAIN`` and so on."""
    data: int
    """First block of flat data (-1: a hole), blocks of compressed data, the chunk format,
    or the encoded device number: by layout and type."""
    xattr_address: int
    """Byte address of the inline xattrs, in the metabox if the inode is there."""
    xattr_bytes: int
    blocks_512: int

    @property
    def in_metabox(self) -> bool:
        """Whether the inode and what follows it lie in the metabox."""
        return bool(self.nid >> ondisk.EROFS_DIRENT_NID_METABOX_BIT)

    @property
    def tail_address(self) -> int:
        """Byte address behind inode and xattrs: inline data or the index of the data."""
        return self.xattr_address + self.xattr_bytes

    @property
    def rdev(self) -> tuple[int, int]:
        """Device numbers (major, minor); (0, 0) for what is no device."""
        if not (stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)):
            return 0, 0
        raw = self.data
        return raw >> 8 & 0xFFF, raw & 0xFF | raw >> 12 & 0xFFF00

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_special(self) -> bool:
        """Whether it is a device, pipe or socket, which have no data."""
        return stat.S_IFMT(self.mode) in _SPECIAL_TYPES

    @property
    def is_compressed(self) -> bool:
        """Whether the data is compressed, with either kind of index."""
        return self.layout in (
            ondisk.EROFS_INODE_COMPRESSED_FULL,
            ondisk.EROFS_INODE_COMPRESSED_COMPACT,
        )

    def attributes(self) -> Attributes:
        """What ``stat`` shows."""
        _, mode, uid, gid, nlink, size_bytes, mtime_s, mtime_ns, *_, blocks_512 = self
        major, minor = self.rdev
        return Attributes(
            mode, uid, gid, nlink, size_bytes, mtime_s, mtime_ns, major, minor, blocks_512
        )


def inode_address(superblock: Superblock, nid: Nid) -> int:
    """Byte address of an inode, in the metabox if bit 63 of the nid says so.

    Raises:
        ImageFormatError: no address, or there is no metabox.
    """
    if nid >> ondisk.EROFS_DIRENT_NID_METABOX_BIT:
        if not superblock.metabox_nid:
            raise ImageFormatError(f"nid {nid:#x}: in the metabox, but the image has none")
        address = (nid & ondisk.EROFS_DIRENT_NID_MASK) * ondisk.EROFS_ISLOT_SIZE
    else:
        address = superblock.meta_address + nid * ondisk.EROFS_ISLOT_SIZE
    if not 0 <= address < limits.MAX_ADDRESS - ondisk.INODE_EXTENDED.size_bytes:
        raise ImageFormatError(f"nid {nid:#x}: no such address")
    return address


def is_extended(data: bytes, offset: int) -> bool:
    """Whether the inode at ``offset`` takes 64 bytes and not 32."""
    return bool(data[offset] & ondisk.EROFS_I_VERSION_MASK)


def decode_inode(superblock: Superblock, nid: Nid, address: int, data: bytes, offset: int) -> Inode:
    """Decode the inode at ``offset`` of ``data``, whose byte address is ``address``.

    Raises:
        ImageFormatError: a value that cannot be.
        UnsupportedFeatureError: a data layout that lazyfs does not know.
    """
    if is_extended(data, offset):
        extended = ondisk.INODE_EXTENDED.fields(data, offset)
        i_format, icount, mode, high, size, i_u, _, uid, gid, mtime, mtime_ns, nlink, _ = extended
        mtime -= mtime >> 63 << 64
        record_bytes = ondisk.INODE_EXTENDED.size_bytes
        null_address = _NULL_ADDRESS_48
    else:
        compact = ondisk.INODE_COMPACT.fields(data, offset)
        i_format, icount, mode, high, size, mtime, i_u, _, uid, gid, _ = compact
        mtime += superblock.epoch_s
        mtime_ns = superblock.fixed_ns
        record_bytes = ondisk.INODE_COMPACT.size_bytes
        null_address = _NULL_ADDRESS_48
        nlink = 1
        if not i_format >> ondisk.EROFS_I_NLINK_1_BIT & 1 or stat.S_ISDIR(mode):
            nlink = high
            high = 0
            null_address = _NULL_ADDRESS_32
    file_type = stat.S_IFMT(mode)
    layout = i_format >> ondisk.EROFS_I_DATALAYOUT_BIT & ondisk.EROFS_I_DATALAYOUT_MASK
    if i_format & ~ondisk.EROFS_I_ALL or layout >= ondisk.EROFS_INODE_DATALAYOUT_MAX:
        raise UnsupportedFeatureError(f"nid {nid:#x}: inode format {i_format:#x}")
    if file_type not in _KNOWN_TYPES:
        raise ImageFormatError(f"nid {nid:#x}: no such file type: mode {mode:#o}")
    if size > limits.MAX_ADDRESS - superblock.block_bytes:
        raise ImageFormatError(f"nid {nid:#x}: size {size}")
    if mtime_ns > limits.MAX_NANOSECONDS:
        raise ImageFormatError(f"nid {nid:#x}: {mtime_ns} nanoseconds")

    blocks_512 = -(-size >> superblock.block_bits) << superblock.block_bits >> 9
    if file_type in _SPECIAL_TYPES:
        value = i_u
    elif layout == ondisk.EROFS_INODE_CHUNK_BASED:
        value = i_u & 0xFFFF
        if value & ~ondisk.EROFS_CHUNK_FORMAT_ALL:
            raise UnsupportedFeatureError(f"nid {nid:#x}: chunk format {value:#x}")
    else:
        value = i_u | high << 32
        if layout == ondisk.EROFS_INODE_FLAT_PLAIN:
            if value & null_address == null_address:
                value = -1
        elif layout != ondisk.EROFS_INODE_FLAT_INLINE:
            blocks_512 = value << superblock.block_bits >> 9
    return Inode(
        nid,
        mode,
        uid,
        gid,
        nlink,
        size,
        mtime,
        mtime_ns,
        layout,
        value,
        address + record_bytes,
        8 + 4 * icount if icount else 0,
        blocks_512,
    )
