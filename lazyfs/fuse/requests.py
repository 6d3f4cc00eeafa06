"""What a request says behind its head (linux/fuse.h): ``fuse_…_in``.

The kernel writes requests, so a broken one means that we and it do not speak of the same thing;
it is refused like any other, and the mount goes on.
"""

import struct
from typing import NamedTuple

from lazyfs.errors import FuseRequestError
from lazyfs.fuse.protocol import IN_HEADER

_READ_IN = struct.Struct("=QQI4xQI4x")
"""``fuse_read_in``: fh, offset, size, read_flags, lock_owner, flags, padding."""

_GETXATTR_IN = struct.Struct("=I4x")
"""``fuse_getxattr_in``: size, padding. Names follow."""

_INTERRUPT_IN = struct.Struct("=Q")
"""``fuse_interrupt_in``: unique."""

_BODY = IN_HEADER.size

_thread_at = struct.Struct("=32xI").unpack_from
"""``fuse_in_header.pid``."""


class ReadRequest(NamedTuple):
    """READ, READDIR and READDIRPLUS."""

    offset: int
    """In bytes; of a listing the position that its last entry had."""
    size: int
    """Bytes that the answer may have at most."""


class XattrRequest(NamedTuple):
    """GETXATTR and LISTXATTR."""

    size: int
    """Bytes that the value may have at most; 0: only its length is wanted."""
    name: bytes
    """Empty for LISTXATTR."""


def decode_name(request: bytes, offset: int = _BODY) -> bytes:
    """The name that a request ends with.

    Raises:
        FuseRequestError: there is none, or no end of it.
    """
    if len(request) < offset + 2 or request[-1]:
        raise FuseRequestError(f"{len(request)} bytes without a name at {offset}")
    name = request[offset:-1]
    if b"\0" in name:
        raise FuseRequestError(f"NUL in the name {name!r}")
    return name


def decode_thread(request: bytes) -> int:
    """Who asks, of a request whose head was read already; 0: nobody whom we can see."""
    (thread,) = _thread_at(request)
    return int(thread)


def decode_read(request: bytes) -> ReadRequest:
    """What is to be read.

    Raises:
        FuseRequestError: it is too short.
    """
    if len(request) < _BODY + _READ_IN.size:
        raise FuseRequestError(f"READ of {len(request)} bytes")
    _, offset, size, _, _ = _READ_IN.unpack_from(request, _BODY)
    return ReadRequest(offset, size)


def decode_getxattr(request: bytes) -> XattrRequest:
    """Which attribute is wanted.

    Raises:
        FuseRequestError: it is too short.
    """
    size, _ = decode_listxattr(request)
    return XattrRequest(size, decode_name(request, _BODY + _GETXATTR_IN.size))


def decode_listxattr(request: bytes) -> XattrRequest:
    """How much of the names is wanted.

    Raises:
        FuseRequestError: it is too short.
    """
    if len(request) < _BODY + _GETXATTR_IN.size:
        raise FuseRequestError(f"GETXATTR or LISTXATTR of {len(request)} bytes")
    (size,) = _GETXATTR_IN.unpack_from(request, _BODY)
    return XattrRequest(size, b"")


def decode_interrupt(request: bytes) -> int:
    """The number of the request that a signal has interrupted.

    Raises:
        FuseRequestError: it is too short.
    """
    if len(request) < _BODY + _INTERRUPT_IN.size:
        raise FuseRequestError(f"INTERRUPT of {len(request)} bytes")
    (unique,) = _INTERRUPT_IN.unpack_from(request, _BODY)
    return int(unique)
