"""Extended attributes: inline, shared, and with long name prefixes."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.steps import Steps

ReadMetadata: TypeAlias = Callable[[bool, int, int], Steps[bytes]]
"""(in the metabox, address, length) → the bytes."""

_ENTRY_BYTES = ondisk.XATTR_ENTRY.size_bytes
_IBODY_HEADER_BYTES = ondisk.XATTR_IBODY_HEADER.size_bytes
_SHARED_ID_BYTES = 4
_PREFIX_LENGTH_BYTES = 2
_PREFIX_ALIGN = 4

_PREFIXES = {
    ondisk.EROFS_XATTR_INDEX_USER: b"user.",
    ondisk.EROFS_XATTR_INDEX_POSIX_ACL_ACCESS: b"system.posix_acl_access",
    ondisk.EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT: b"system.posix_acl_default",
    ondisk.EROFS_XATTR_INDEX_TRUSTED: b"trusted.",
    ondisk.EROFS_XATTR_INDEX_SECURITY: b"security.",
}
"""What Linux shows; attributes under other indexes are private to their writers."""


class RawXattr(NamedTuple):
    """An attribute as it lies on disk."""

    name_index: int
    suffix: bytes
    value: bytes


def read_raw_xattrs(
    superblock: Superblock, inode: Inode, metadata: ReadMetadata
) -> Steps[list[RawXattr]]:
    """All attributes of an inode, inline ones first, names not yet put together.

    Raises:
        ImageFormatError: an attribute passes the end of its area.
        UnsupportedFeatureError: an area without room for attributes (reserved).
    """
    if not inode.xattr_bytes:
        return []
    if inode.xattr_bytes == _IBODY_HEADER_BYTES:
        raise UnsupportedFeatureError(f"nid {inode.nid:#x}: xattr area of only a header")
    body = yield from metadata(inode.in_metabox, inode.xattr_address, inode.xattr_bytes)
    header = ondisk.XATTR_IBODY_HEADER.decode(body)
    position = _IBODY_HEADER_BYTES + _SHARED_ID_BYTES * header.h_shared_count
    if position > len(body):
        raise ImageFormatError(
            f"nid {inode.nid:#x}: {header.h_shared_count} shared xattrs in {len(body)} bytes"
        )
    shared_ids = [
        int.from_bytes(body[at : at + _SHARED_ID_BYTES], "little")
        for at in range(_IBODY_HEADER_BYTES, position, _SHARED_ID_BYTES)
    ]
    found = []
    while position < len(body):  # each step takes at least the 4 bytes of an entry
        entry = ondisk.XATTR_ENTRY.decode(body, position)
        start = position + _ENTRY_BYTES
        end = start + entry.e_name_len + entry.e_value_size
        if end > len(body):
            raise ImageFormatError(
                f"nid {inode.nid:#x}: xattr at {position} ends at {end} of {len(body)}"
            )
        found.append(_raw_xattr(entry, body[start:end]))
        if len(found) > limits.MAX_XATTRS:
            raise ImageFormatError(f"nid {inode.nid:#x}: more than {limits.MAX_XATTRS} xattrs")
        position = -(-end // ondisk.EROFS_XATTR_ALIGN) * ondisk.EROFS_XATTR_ALIGN
    yield from _read_shared(superblock, inode, metadata, shared_ids, found)
    return found


def _read_shared(
    superblock: Superblock,
    inode: Inode,
    metadata: ReadMetadata,
    shared_ids: list[int],
    found: list[RawXattr],
) -> Steps[None]:
    in_metabox = superblock.has_compat(ondisk.EROFS_FEATURE_COMPAT_SHARED_EA_IN_METABOX)
    total = 0
    for shared_id in shared_ids:
        address = superblock.xattr_address + shared_id * _SHARED_ID_BYTES
        entry = ondisk.XATTR_ENTRY.decode((yield from metadata(in_metabox, address, _ENTRY_BYTES)))
        length = entry.e_name_len + entry.e_value_size
        total += length
        if total > limits.MAX_XATTR_BYTES:
            raise ImageFormatError(
                f"nid {inode.nid:#x}: more than {limits.MAX_XATTR_BYTES} bytes of xattrs"
            )
        data = b""
        if length:
            data = yield from metadata(in_metabox, address + _ENTRY_BYTES, length)
        found.append(_raw_xattr(entry, data))


def _raw_xattr(entry: ondisk.XattrEntryRecord, data: bytes) -> RawXattr:
    return RawXattr(entry.e_name_index, data[: entry.e_name_len], data[entry.e_name_len :])


def needs_long_prefixes(raw: list[RawXattr]) -> bool:
    """Whether any name refers to the table of long prefixes."""
    return any(xattr.name_index & ondisk.EROFS_XATTR_LONG_PREFIX for xattr in raw)


def read_long_prefixes(
    superblock: Superblock, read: Callable[[int, int], Steps[bytes]]
) -> Steps[tuple[bytes | None, ...]]:
    """The table of long prefixes, each in full; None: for names that Linux does not show.

    Args:
        superblock: says how many there are and where they begin.
        read: (offset, length) → bytes of whatever holds the table.

    Raises:
        ImageFormatError: a length that cannot be.
    """
    prefixes = []
    position = superblock.xattr_prefix_offset
    for _ in range(superblock.xattr_prefix_count):
        position = -(-position // _PREFIX_ALIGN) * _PREFIX_ALIGN
        length = int.from_bytes((yield from read(position, _PREFIX_LENGTH_BYTES)), "little")
        if not 1 <= length <= limits.MAX_NAME_BYTES + 1:
            raise ImageFormatError(f"long xattr prefix at {position}: {length} bytes")
        data = yield from read(position + _PREFIX_LENGTH_BYTES, length)
        base = _PREFIXES.get(data[0])
        prefixes.append(None if base is None else base + data[1:])
        position += _PREFIX_LENGTH_BYTES + length
    return tuple(prefixes)


def named_xattrs(
    inode: Inode, raw: list[RawXattr], long_prefixes: tuple[bytes | None, ...]
) -> dict[bytes, bytes]:
    """Attributes by full name; of two with the same name the first counts, as in Linux.

    Raises:
        ImageFormatError: a name that cannot be.
    """
    named: dict[bytes, bytes] = {}
    for name_index, suffix, value in raw:
        prefix: bytes | None
        if name_index & ondisk.EROFS_XATTR_LONG_PREFIX:
            number = name_index & ondisk.EROFS_XATTR_LONG_PREFIX_MASK
            if number >= len(long_prefixes):
                raise ImageFormatError(f"nid {inode.nid:#x}: no long xattr prefix {number}")
            prefix = long_prefixes[number]
        else:
            prefix = _PREFIXES.get(name_index)
        if prefix is None:
            continue
        name = prefix + suffix
        if len(name) > limits.MAX_NAME_BYTES or b"\0" in name:
            raise ImageFormatError(f"nid {inode.nid:#x}: xattr name {name!r}")
        named.setdefault(name, value)
    return named
