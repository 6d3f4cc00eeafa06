"""Values that several parts of lazyfs share; frozen, without behaviour beyond arithmetic."""

import enum
from typing import NamedTuple, NewType

Nid = NewType("Nid", int)
"""EROFS inode address: index of a 32-byte slot counted from ``meta_blkaddr``."""

NodeId = NewType("NodeId", int)
"""What FUSE calls an inode number: names one object of a mounted tree; the root is 1."""

ROOT_NODE = NodeId(1)

END_POSITION = (1 << 31) - 3
"""Where a listing continues behind the last entry of a directory, if that is known when it is
listed. No other position is this one: dirents begin at multiples of 12 bytes in their block. It
fits into 31 bits, which is all that some programs take, with the two entries that come before."""


class VerifyMode(enum.Enum):
    """When bytes are proven."""

    ALWAYS = "always"
    """On arrival, and every block again when it is read back from the cache."""
    FETCH = "fetch"
    """On arrival only: the cache on disk is trusted."""
    OFF = "off"
    """Never."""


class ByteRange(NamedTuple):
    """``length`` bytes from ``offset`` (both in bytes, neither negative)."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset of the first byte behind the range."""
        return self.offset + self.length


class Attributes(NamedTuple):
    """What ``stat`` shows of one object.

    EROFS keeps a single time; it serves as mtime, ctime and atime (as in the kernel).
    """

    mode: int
    """File type and permission bits, as ``st_mode``."""
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    mtime_s: int
    """Seconds since the epoch; may be negative."""
    mtime_ns: int
    """Nanoseconds within the second, 0..999999999."""
    rdev_major: int
    rdev_minor: int
    blocks_512: int
    """``st_blocks``: 512-byte units."""


class DirectoryEntry(NamedTuple):
    """One name in a directory listing."""

    name: bytes
    node: NodeId
    file_type: int
    """The ``S_IFMT`` bits of the object's mode."""
    next_position: int
    """Where a listing continues behind this entry (an opaque, positive cookie, or
    ``END_POSITION``)."""
