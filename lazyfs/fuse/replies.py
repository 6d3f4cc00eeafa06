"""What is answered (linux/fuse.h): ``fuse_…_out``, ``fuse_attr``, ``fuse_dirent``.

The image never changes, so the kernel may keep entries and attributes for ever; that is what
makes a warm mount fast.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from lazyfs.errors import ImageFormatError
from lazyfs.model import Attributes, DirectoryEntry, NodeId

FOREVER_S: Final = 0xFFFF_FFFF
"""Until when the kernel may keep what it was told: 136 years."""

BLOCK_BYTES: Final = 4096
NAME_MAX: Final = 255

_ATTR = "QQQQQQIIIIIIIIII"
"""``fuse_attr``: ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode,
nlink, uid, gid, rdev, blksize, flags."""

_ENTRY_OUT = struct.Struct(f"=QQQQII{_ATTR}")
"""``fuse_entry_out``: nodeid, generation, entry_valid, attr_valid, entry_valid_nsec,
attr_valid_nsec, attr."""

_ATTR_OUT = struct.Struct(f"=QII{_ATTR}")
"""``fuse_attr_out``: attr_valid, attr_valid_nsec, dummy, attr."""

_KSTATFS = struct.Struct("=QQQQQIIII24x")
"""``fuse_kstatfs``: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare."""

_GETXATTR_OUT = struct.Struct("=I4x")
"""``fuse_getxattr_out``: size, padding."""

_DIRENTS: Final = tuple(
    struct.Struct(f"=QQII{-(-length // 8) * 8}s").pack for length in range(NAME_MAX + 1)
)
"""By the length of the name, ``fuse_dirent``: ino, off, namelen, type, and the name with zeros up
to a multiple of 8 bytes."""

OPEN_OUT: Final = bytes(16)
"""``fuse_open_out``: fh, open_flags, backing_id, none of which we need."""

NO_ENTRY: Final = bytes(_ENTRY_OUT.size)
"""In a listing: without attributes. The kernel looks the name up when somebody wants them."""

ABSENT_ENTRY: Final = _ENTRY_OUT.pack(0, 0, FOREVER_S, *bytes(19))
"""That a name does not exist, as the kernel remembers it (``ENOENT`` it would forget)."""

_U32 = 0xFFFF_FFFF
_U64 = 0xFFFF_FFFF_FFFF_FFFF


def encode_entry(node: NodeId, attributes: Attributes) -> bytes:
    """What the kernel keeps for ever about a name and what it leads to.

    Raises:
        ImageFormatError: a value does not fit.
    """
    try:
        return _ENTRY_OUT.pack(node, 0, FOREVER_S, FOREVER_S, 0, 0, *_attr(node, attributes))
    except struct.error as error:
        raise ImageFormatError(f"node {node}: {error} in {attributes}") from error


def encode_attributes(node: NodeId, attributes: Attributes) -> bytes:
    """What the kernel keeps for ever about a node.

    Raises:
        ImageFormatError: a value does not fit.
    """
    try:
        return _ATTR_OUT.pack(FOREVER_S, 0, 0, *_attr(node, attributes))
    except struct.error as error:
        raise ImageFormatError(f"node {node}: {error} in {attributes}") from error


def _attr(node: NodeId, found: Attributes) -> tuple[int, ...]:
    mode, uid, gid, nlink, size_bytes, time_s, time_ns, major, minor, blocks_512 = found
    time_s &= _U64  # the kernel takes it for signed again
    return (
        node,
        size_bytes,
        blocks_512,
        time_s,
        time_s,
        time_s,
        time_ns,
        time_ns,
        time_ns,
        mode,
        nlink & _U32,
        uid,
        gid,
        encode_device(major, minor) if major or minor else 0,
        BLOCK_BYTES,
        0,
    )


def encode_device(major: int, minor: int) -> int:
    """A device number as the kernel tells it (``new_encode_dev`` in linux/kdev_t.h)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def encode_statfs(size_bytes: int) -> bytes:
    """A file system of that size, which is full."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    return _KSTATFS.pack(blocks, 0, 0, 0, 0, BLOCK_BYTES, NAME_MAX, BLOCK_BYTES, 0)


def encode_length(length: int) -> bytes:
    """The length of an extended attribute, or of all names, for who wants to know only that."""
    return _GETXATTR_OUT.pack(length)


class Listing:
    """The answer to READDIR or, with attributes, to READDIRPLUS."""

    def __init__(self, size: int, *, plus: bool) -> None:
        """Begin one of at most ``size`` bytes."""
        self.buffer = bytearray()
        self.plus = plus
        self.position = 0
        """Where it goes on behind what was added."""
        self._size = size

    def add(
        self, name: bytes, node: int, file_type: int, position: int, entry: bytes = NO_ENTRY
    ) -> bool:
        """Add a name; False if there is no room left for it.

        Args:
            name: without a slash, at most ``NAME_MAX`` bytes.
            node: its inode number.
            file_type: the ``S_IFMT`` bits; 0: not known.
            position: where a listing goes on behind it.
            entry: what ``encode_entry`` gave, if it is listed with attributes.
        """
        added = DirectoryEntry(name, NodeId(node), file_type, position)
        return self.add_all((added,), 0, {added.node: entry}) == 1

    @property
    def most(self) -> int:
        """How many names there is room for at most."""
        least = len(_DIRENTS[1](0, 0, 0, 0, b"")) + (len(NO_ENTRY) if self.plus else 0)
        return (self._size - len(self.buffer)) // least

    def add_all(
        self, entries: Sequence[DirectoryEntry], behind: int, shown: Mapping[NodeId, bytes]
    ) -> int:
        """Add entries, up to the first for which there is no room; returns how many were added.

        Args:
            entries: what to add.
            behind: is added to their positions.
            shown: by node, what ``encode_entry`` gave.
        """
        buffer, plus, size = self.buffer, self.plus, self._size
        for count, (name, node, file_type, position) in enumerate(entries):
            length = len(name)
            record = _DIRENTS[length](node, position + behind, length, file_type >> 12, name)
            if plus:
                record = shown.get(node, NO_ENTRY) + record
            if len(buffer) + len(record) > size:
                return count
            buffer += record
            self.position = position + behind
        return len(entries)
