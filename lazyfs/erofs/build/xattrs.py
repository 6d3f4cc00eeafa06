"""Extended attributes on disk: inline bodies and the shared area (``erofs_fs.h``, ``xattr.h``).

An attribute is (name index, name behind the prefix, value). One that several inodes carry is
stored once, in the shared area, where that saves bytes; an inode then has a 4-byte id of it.
"""

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from lazyfs.erofs.ondisk import (
    EROFS_XATTR_INDEX_LUSTRE,
    EROFS_XATTR_INDEX_POSIX_ACL_ACCESS,
    EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT,
    EROFS_XATTR_INDEX_SECURITY,
    EROFS_XATTR_INDEX_TRUSTED,
    EROFS_XATTR_INDEX_USER,
    XATTR_ENTRY,
    XATTR_IBODY_HEADER,
    XattrEntryRecord,
    XattrIbodyHeaderRecord,
)
from lazyfs.errors import ConversionError

SHARED_ID_SIZE = 4
MAX_SHARED_PER_INODE = 255
"""``h_shared_count`` is a byte."""
MAX_ICOUNT = 0xFFFF
"""``i_xattr_icount`` has 16 bits."""
MAX_NAME_SIZE = 255
MAX_VALUE_SIZE = 0xFFFF

_PREFIXES = (
    (b"user.", EROFS_XATTR_INDEX_USER),
    (b"trusted.", EROFS_XATTR_INDEX_TRUSTED),
    (b"security.", EROFS_XATTR_INDEX_SECURITY),
    (b"lustre.", EROFS_XATTR_INDEX_LUSTRE),
)
_WHOLE_NAMES = {
    b"system.posix_acl_access": EROFS_XATTR_INDEX_POSIX_ACL_ACCESS,
    b"system.posix_acl_default": EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT,
}


class Xattr(NamedTuple):
    """One attribute; a POSIX ACL has an empty name and the value of its ``system.`` xattr."""

    name_index: int
    name: bytes
    value: bytes


XattrSet: TypeAlias = tuple[Xattr, ...]
"""Sorted, no name twice."""

OPAQUE = Xattr(EROFS_XATTR_INDEX_TRUSTED, b"overlay.opaque", b"y")
"""Overlayfs: a directory that hides what lower layers have below its name."""
ORIGIN = Xattr(EROFS_XATTR_INDEX_TRUSTED, b"overlay.origin", b"")
"""Overlayfs: a directory that may hold whiteouts even where nothing lies below it.

Without it, overlayfs lists an unmerged directory as it is, whiteouts included (Linux commit
b79e05aaa166); ``mkfs.erofs --aufs`` does the same.
"""


def xattr_set(xattrs: Mapping[bytes, bytes]) -> tuple[XattrSet, int]:
    """The attributes that EROFS can hold, and how many it has no name prefix for.

    Raises:
        ConversionError: a name or value too long for the format.
    """
    found = []
    for full_name, value in xattrs.items():
        key = _on_disk_name(full_name)
        if key is None:
            continue
        if len(key[1]) > MAX_NAME_SIZE or len(value) > MAX_VALUE_SIZE:
            raise ConversionError(
                f"xattr {full_name[:80]!r}: name of {len(key[1])} bytes and value of "
                f"{len(value)}, at most {MAX_NAME_SIZE} and {MAX_VALUE_SIZE}"
            )
        found.append(Xattr(*key, value))
    return tuple(sorted(found)), len(xattrs) - len(found)


def _on_disk_name(full_name: bytes) -> tuple[int, bytes] | None:
    whole = _WHOLE_NAMES.get(full_name)
    if whole is not None:
        return whole, b""
    for prefix, index in _PREFIXES:
        if full_name.startswith(prefix) and len(full_name) > len(prefix):
            return index, full_name[len(prefix) :]
    return None


def with_xattr(xattrs: XattrSet, added: Xattr) -> XattrSet:
    """``xattrs`` and ``added``, unless the name is there already."""
    if any(xattr[:2] == added[:2] for xattr in xattrs):
        return xattrs
    return tuple(sorted((*xattrs, added)))


def entry_size(xattr: Xattr) -> int:
    """Bytes of ``struct erofs_xattr_entry`` with name, value and padding."""
    return (XATTR_ENTRY.size_bytes + len(xattr.name) + len(xattr.value) + 3) & ~3


def encode_entry(xattr: Xattr) -> bytes:
    """``struct erofs_xattr_entry`` with name, value and padding."""
    record = XattrEntryRecord(len(xattr.name), xattr.name_index, len(xattr.value))
    data = XATTR_ENTRY.encode(record) + xattr.name + xattr.value
    return data.ljust(entry_size(xattr), b"\0")


def worth_sharing(counts: Mapping[Xattr, int]) -> list[Xattr]:
    """Those that take fewer bytes stored once with ids than inline, in a fixed order."""
    return sorted(
        xattr
        for xattr, count in counts.items()
        if entry_size(xattr) + SHARED_ID_SIZE * count < entry_size(xattr) * count
    )


def _split(xattrs: XattrSet, shared: Container[Xattr]) -> tuple[list[Xattr], list[Xattr]]:
    """The attributes that an inode refers to and those that follow it."""
    by_id: list[Xattr] = []
    inline: list[Xattr] = []
    for xattr in xattrs:
        fits = xattr in shared and len(by_id) < MAX_SHARED_PER_INODE
        (by_id if fits else inline).append(xattr)
    return by_id, inline


def body_size(xattrs: XattrSet, shared: Container[Xattr]) -> int:
    """Bytes of the attributes that follow an inode.

    Raises:
        ConversionError: more than the inode's 16-bit count can say.
    """
    if not xattrs:
        return 0
    by_id, inline = _split(xattrs, shared)
    size = XATTR_IBODY_HEADER.size_bytes + SHARED_ID_SIZE * len(by_id)
    size += sum(map(entry_size, inline))
    if body_icount(size) > MAX_ICOUNT:
        raise ConversionError(f"{len(xattrs)} xattrs take {size} bytes, too many for EROFS")
    return size


def body_icount(size: int) -> int:
    """``i_xattr_icount`` of a body of that many bytes."""
    return (size - XATTR_IBODY_HEADER.size_bytes) // 4 + 1 if size else 0


def encode_body(xattrs: XattrSet, shared_ids: Mapping[Xattr, int]) -> bytes:
    """What follows an inode: ``struct erofs_xattr_ibody_header``, shared ids, inline entries."""
    if not xattrs:
        return b""
    by_id, inline = _split(xattrs, shared_ids)
    header = XattrIbodyHeaderRecord(0, len(by_id), bytes(7))
    return b"".join(
        (
            XATTR_IBODY_HEADER.encode(header),
            *(shared_ids[xattr].to_bytes(SHARED_ID_SIZE, "little") for xattr in by_id),
            *map(encode_entry, inline),
        )
    )


def shared_ids(shared: Iterable[Xattr], position: int) -> dict[Xattr, int]:
    """Ids of attributes that lie one after the other from byte ``position`` on.

    An id counts 4-byte units from ``xattr_blkaddr``, which is block 0 in our images.
    """
    ids: dict[Xattr, int] = {}
    for xattr in shared:
        ids[xattr] = position // 4
        position += entry_size(xattr)
    return ids
