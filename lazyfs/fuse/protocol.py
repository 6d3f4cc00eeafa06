"""The FUSE protocol: heads of messages, operations, and how a connection begins (linux/fuse.h).

What requests say besides is in ``requests.py``, what is answered in ``replies.py``.
"""

import enum
import struct
from dataclasses import dataclass

from lazyfs.errors import MountError

IN_HEADER = struct.Struct("=IIQQIIIHH")
"""``fuse_in_header``: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""

OUT_HEADER = struct.Struct("=IiQ")
"""``fuse_out_header``: len, error, unique."""

_INIT_IN = struct.Struct("=IIII")
"""``fuse_init_in`` until 7.35: major, minor, max_readahead, flags."""
_INIT_IN_EXTENDED = struct.Struct("=I44x")
"""What 7.36 added to it: flags2, unused."""
_INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
"""``fuse_init_out``: major, minor, max_readahead, flags, max_background, congestion_threshold,
max_write, time_gran, max_pages, map_alignment, flags2, max_stack_depth, request_timeout."""

MIN_BUFFER_BYTES = 8192
"""``FUSE_MIN_READ_BUFFER``: the kernel gives no request to a smaller buffer."""

MAJOR = 7
MINOR = 31
"""The version that we agree on: all that we ask for is in it."""

NOTIFY_RESEND = 7
UNIQUE_RESENT = 1 << 63
"""Set by the kernel in the number of a request that it sends again."""

MAX_BACKGROUND = 512
"""Reads of pages that may be under way. One layer whose registry does not answer may hold hundreds,
and the kernel would let reads of other layers wait behind them."""
CONGESTION_THRESHOLD = MAX_BACKGROUND
"""While so many are, the kernel reads small files page by page, by requests that keep a killed
process from ending: it takes for read-ahead what is not (``fuse_readahead`` in fs/fuse/file.c)."""
MAX_PAGES = 256
"""1 MiB in one read; the kernel's own limit (``fs.fuse.max_pages_limit``)."""
MAX_WRITE_BYTES = 4096
"""The least there is: nothing is ever written, and buffers for requests may stay small."""


class Opcode(enum.IntEnum):
    """``fuse_opcode``: what the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    COPY_FILE_RANGE = 47
    TMPFILE = 51


CHANGES = frozenset(
    (
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.FALLOCATE,
        Opcode.RENAME2,
        Opcode.COPY_FILE_RANGE,
        Opcode.TMPFILE,
    )
)
"""What a read-only file system answers with ``EROFS``, if the kernel asks at all."""


class Feature(enum.IntFlag):
    """Bits of INIT; ``lazyfs/fuse/README.md`` says why each is asked for, or not."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    """Only ever offered: ``ENOSYS`` to OPENDIR means that directories may be remembered."""
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39
    """Only ever offered: the kernel understands NOTIFY_RESEND (Linux 6.9)."""


WANTED = (
    Feature.ASYNC_READ
    | Feature.EXPORT_SUPPORT
    | Feature.DO_READDIRPLUS
    | Feature.ASYNC_DIO
    | Feature.PARALLEL_DIROPS
    | Feature.POSIX_ACL
    | Feature.MAX_PAGES
    | Feature.CACHE_SYMLINKS
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the kernel says when a mount begins."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    features: Feature

    @property
    def agreed(self) -> Feature:
        """What we ask for of it."""
        return self.features & WANTED


def decode_init(request: bytes) -> Offer:
    """The kernel's offer.

    Raises:
        MountError: it is no INIT of version 7.
    """
    if len(request) < IN_HEADER.size + _INIT_IN.size:
        raise MountError(f"a FUSE request of {len(request)} bytes where INIT should be")
    _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(request, IN_HEADER.size)
    if opcode != Opcode.INIT or major != MAJOR:
        raise MountError(f"FUSE request {opcode} of version {major}, wanted INIT of version 7")
    extended = IN_HEADER.size + _INIT_IN.size
    if flags & Feature.INIT_EXT and len(request) >= extended + _INIT_IN_EXTENDED.size:
        (flags2,) = _INIT_IN_EXTENDED.unpack_from(request, extended)
        flags |= flags2 << 32
    return Offer(unique, major, minor, max_readahead, Feature(flags))


def encode_init_reply(offer: Offer) -> bytes:
    """Our answer to the kernel's offer."""
    body = _INIT_OUT.pack(
        MAJOR,
        MINOR,
        offer.max_readahead,
        offer.agreed,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        MAX_WRITE_BYTES,
        1,  # nanoseconds in a unit of time
        MAX_PAGES,
        0,
        0,
        0,
        0,
    )
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, offer.unique) + body


def encode_resend() -> bytes:
    """Asks the kernel for all requests again that were read but not answered."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)
