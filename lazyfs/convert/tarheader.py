"""Tar headers as values: ustar, GNU, star and V7 blocks, PAX records, sparse maps (pure).

Written against POSIX.1-2024 (pax), the GNU tar manual ("Basic Tar Format", "Sparse Formats")
and what Go's ``archive/tar`` accepts, since that is what container tools read layers with.
The standard library's ``tarfile`` is not used: it takes a damaged header for the end of the
archive, rounds times to floats, and has no bound on the memory or time that a hostile header
costs.
"""

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
MAX_SPARSE_SEGMENTS = 1 << 20

_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_CHECKSUM_FIELD = slice(148, 156)
_GNU_MAGIC = b"ustar  \0"
_POSIX_MAGIC = b"ustar\0"
_STAR_TRAILER = slice(508, 512)
_STAR_PREFIX_SIZE = 131
_NUMBER_LENGTH_LIMIT = 40
_NS_DIGITS = 9

_SPARSE_PAIR = 24
_SPARSE_IN_HEADER = slice(386, 482)
_SPARSE_HEADER_CONTINUES = 482
_SPARSE_REAL_SIZE = slice(483, 495)
_SPARSE_IN_BLOCK = slice(0, 504)
_SPARSE_BLOCK_CONTINUES = 504

_TIME = re.compile(rb"(-?)(\d{1,20})(?:\.(\d*))?")
_RECORD_LENGTH = re.compile(rb"(\d{1,20}) ")
_SCHILY_XATTR = b"SCHILY.xattr."
_LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."


class TarHeader(NamedTuple):
    """One header block, before any extension."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    """Bytes that follow, as the header says (not true of links and the like)."""
    mtime_s: int
    type_flag: bytes
    link_name: bytes
    major: int
    minor: int


def decode_header(block: bytes) -> TarHeader:
    """Decode a header block that is not all zeros.

    Raises:
        ConversionError: not a tar header, or damaged.
    """
    (name, mode, uid, gid, size, mtime, checksum, type_flag, link_name, magic,
     _, _, major, minor, prefix, _) = _USTAR.unpack(block)  # fmt: skip
    _check_sum(block, checksum)
    path = _text(name)
    if magic.startswith(_POSIX_MAGIC):
        if block[_STAR_TRAILER] == b"tar\0":
            prefix = prefix[:_STAR_PREFIX_SIZE]
        if prefix[:1] != b"\0":
            path = _text(prefix) + b"/" + path
    elif magic != _GNU_MAGIC:
        major = minor = b""
    header = TarHeader(
        name=path,
        mode=decode_number(mode, "mode"),
        uid=decode_number(uid, "uid"),
        gid=decode_number(gid, "gid"),
        size=decode_number(size, "size"),
        mtime_s=decode_number(mtime, "mtime"),
        type_flag=type_flag,
        link_name=_text(link_name),
        major=decode_number(major, "major") if type_flag in b"34" else 0,
        minor=decode_number(minor, "minor") if type_flag in b"34" else 0,
    )
    if header.size < 0:
        raise ConversionError(f"size {header.size}")
    return header


def _check_sum(block: bytes, field: bytes) -> None:
    """Compare with the sum of all bytes, unsigned or (historic tars) signed."""
    wanted = decode_number(field, "header checksum")
    unsigned = sum(block) - sum(block[_CHECKSUM_FIELD]) + 8 * ord(" ")
    if wanted == unsigned:
        return
    rest = block[: _CHECKSUM_FIELD.start] + block[_CHECKSUM_FIELD.stop :]
    signed = unsigned - 256 * sum(byte >= 128 for byte in rest)
    if wanted != signed:
        raise ConversionError(f"header checksum {wanted}, computed {unsigned}")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def decode_number(field: bytes, what: str) -> int:
    """A numeric field: octal text, or GNU's base 256 where the first bit is set.

    Raises:
        ConversionError: neither.
    """
    if field[:1] >= b"\x80":
        value = int.from_bytes(field, "big")
        bits = 8 * len(field) - 1
        value &= (1 << bits) - 1
        return value - (1 << bits) if field[0] & 0x40 else value
    text = _text(field).strip(b" ")
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise ConversionError(f"{what} {field!r} is no number")
    return int(text, 8)


def decode_decimal(text: bytes, what: str) -> int:
    """A decimal number of an extension, negative ones included.

    Raises:
        ConversionError: not a number.
    """
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > _NUMBER_LENGTH_LIMIT:
        raise ConversionError(f"{what} {text[:80]!r}")
    return int(text)


def decode_time_ns(text: bytes) -> int:
    """A PAX time in nanoseconds, rounded down.

    Raises:
        ConversionError: not a time.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ConversionError(f"time {text[:80]!r}")
    sign, seconds, fraction = match[1], match[2], match[3] or b""
    value = int(seconds + fraction[:_NS_DIGITS].ljust(_NS_DIGITS, b"0"))
    if not sign:
        return value
    return -value - bool(fraction[_NS_DIGITS:].strip(b"0"))


def decode_pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    r"""The records ``LENGTH KEY=VALUE\n`` of a PAX header, in order.

    Raises:
        ConversionError: a record does not fit its length.
    """
    records: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data) and data[position]:
        match = _RECORD_LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ConversionError(f"PAX record {data[position : position + 40]!r}")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not key or not equals:
            raise ConversionError(f"PAX record {data[position : position + 40]!r}")
        records.append((key, value))
        position = end
    return records


def pax_xattrs(records: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Extended attributes among PAX records, by full name.

    ``SCHILY.xattr`` (star, GNU tar, Go) has the raw value; GNU tar escapes ``=`` and ``%`` in
    the name. ``LIBARCHIVE.xattr`` has a URL-encoded name and base64. ACLs as text
    (``SCHILY.acl``) name users of another machine and are ignored, as container runtimes do.

    Raises:
        ConversionError: a value that is not base64.
    """
    xattrs: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_SCHILY_XATTR):
            name = key[len(_SCHILY_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            xattrs[name] = value
        elif key.startswith(_LIBARCHIVE_XATTR):
            name = unquote_to_bytes(key[len(_LIBARCHIVE_XATTR) :])
            try:
                decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error:
                raise ConversionError(f"{key[:80]!r} is not base64") from None
            xattrs.setdefault(name, decoded)
    return xattrs


class SparseBlock(NamedTuple):
    """Part of an old GNU sparse map."""

    segments: list[ByteRange]
    continues: bool


def old_gnu_sparse(header_block: bytes) -> tuple[int, SparseBlock]:
    """Real size and first part of the map in a header of type ``S``."""
    block = SparseBlock(
        _sparse_pairs(header_block[_SPARSE_IN_HEADER]), header_block[_SPARSE_HEADER_CONTINUES] != 0
    )
    return decode_number(header_block[_SPARSE_REAL_SIZE], "sparse size"), block


def old_gnu_sparse_continued(block: bytes) -> SparseBlock:
    """One more part of the map."""
    return SparseBlock(_sparse_pairs(block[_SPARSE_IN_BLOCK]), block[_SPARSE_BLOCK_CONTINUES] != 0)


def _sparse_pairs(data: bytes) -> list[ByteRange]:
    segments: list[ByteRange] = []
    for start in range(0, len(data), _SPARSE_PAIR):
        offset = data[start : start + 12]
        length = data[start + 12 : start + _SPARSE_PAIR]
        if not offset[0] or not length[0]:
            break
        numbers = (decode_number(field, "sparse map") for field in (offset, length))
        segments.append(ByteRange(*numbers))
    return segments


def pax_sparse_0(records: Iterable[tuple[bytes, bytes]]) -> list[ByteRange] | None:
    """The map of the PAX sparse formats 0.0 (repeated records) and 0.1 (one record).

    Raises:
        ConversionError: an odd or malformed map.
    """
    numbers: list[bytes] = []
    is_sparse = False
    for key, value in records:
        if key == b"GNU.sparse.map":
            is_sparse = True
            numbers = value.split(b",") if value else []
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            is_sparse = True
            if (key == b"GNU.sparse.offset") != (len(numbers) % 2 == 0):
                raise ConversionError("sparse map: offset and length do not alternate")
            numbers.append(value)
        elif key == b"GNU.sparse.size":
            is_sparse = True
    return segments_of(numbers) if is_sparse else None


def segments_of(numbers: Sequence[bytes]) -> list[ByteRange]:
    """Pairs of decimal offset and length.

    Raises:
        ConversionError: an odd or malformed map, or one too long.
    """
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SPARSE_SEGMENTS:
        raise ConversionError(f"sparse map of {len(numbers)} numbers")
    values = [decode_decimal(number, "sparse map number") for number in numbers]
    return [ByteRange(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
