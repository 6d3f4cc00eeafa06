"""Where the members of a tar archive lie: headers in, a table of names out.

Reads ustar, PAX (``path``, ``size``, ``linkpath``) and GNU (long names, base-256 numbers) headers
as POSIX.1-2017 ``pax`` and GNU tar's ``tar.h`` describe them. The caller hands over the bytes that
``scan`` asks for, so that only headers are read, never the data between them.
"""

import re
from collections.abc import Generator
from typing import NamedTuple

from registry.errors import ContentError

BLOCK_BYTES = 512
MEMBERS_LIMIT = 65536
EXTENSION_LIMIT_BYTES = 64 << 10
"""Longest PAX or GNU extension of one header."""
NAME_LIMIT_BYTES = 4096
LINK_HOPS_LIMIT = 8

_REGULAR = b"\0" + b"07"
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"
_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK = b"x", b"g", b"L", b"K"
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*", re.ASCII)


class Wanted(NamedTuple):
    """``length`` bytes at ``offset`` of the archive; shorter at its end."""

    offset: int
    length: int


class Member(NamedTuple):
    """One name of an archive."""

    offset: int
    """Of the data, in bytes from the start of the archive."""
    size_bytes: int
    link_target: str
    """For a link: the member's name, or the path relative to the link's folder."""
    is_symbolic: bool


class _Header(NamedTuple):
    name: str
    size_bytes: int
    kind: bytes
    link: str


def scan(size_bytes: int) -> Generator[Wanted, bytes, dict[str, Member]]:
    """The members of an archive of ``size_bytes`` bytes; of equal names the last counts.

    Raises:
        ContentError: not a tar archive, cut, or beyond a limit.
    """
    members: dict[str, Member] = {}
    position = 0
    pax: dict[str, str] = {}
    for _ in range(MEMBERS_LIMIT):
        if position == size_bytes and members:
            return members  # the two closing blocks are missing, as some writers leave it
        block = yield Wanted(position, BLOCK_BYTES)
        if len(block) == BLOCK_BYTES and not any(block):
            return members
        header = _decode_header(block, position)
        data = position + BLOCK_BYTES
        length = int(pax.get("size", header.size_bytes))
        if header.kind in (_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK):
            if header.size_bytes > EXTENSION_LIMIT_BYTES:
                raise ContentError(f"tar: extension of {header.size_bytes} bytes at {position}")
            length = header.size_bytes
            text = yield Wanted(data, length)
            _extend(pax, header.kind, text, position)
        else:
            if header.kind in _REGULAR:
                name = pax.get("path", header.name)
                members[_clean(name)] = Member(data, length, "", is_symbolic=False)
            elif header.kind in (_HARD_LINK, _SYMBOLIC_LINK):
                length = 0
                name, target = pax.get("path", header.name), pax.get("linkpath", header.link)
                members[_clean(name)] = Member(data, 0, target, header.kind == _SYMBOLIC_LINK)
            pax = {}
        position = data + -(-length // BLOCK_BYTES) * BLOCK_BYTES
        if data + length > size_bytes:
            raise ContentError(f"tar: member at {position} passes the end: the archive was cut")
    raise ContentError(f"tar: more than {MEMBERS_LIMIT} headers")


def find(members: dict[str, Member], name: str) -> Member | None:
    """The member of that name, links followed; None when there is none.

    Raises:
        ContentError: a chain of links without end.
    """
    name = _clean(name)
    for _ in range(LINK_HOPS_LIMIT):
        member = members.get(name)
        if member is None or not member.link_target:
            return member
        folder = name.rpartition("/")[0] + "/" if member.is_symbolic else ""
        name = _clean(folder + member.link_target)
    raise ContentError(f"tar: {name[:80]!r}: too many links")


def _clean(name: str) -> str:
    """``name`` without ``.``, ``..`` and doubled slashes; it never leaves the archive."""
    words: list[str] = []
    for word in name.split("/"):
        if word == "..":
            del words[-1:]
        elif word not in ("", "."):
            words.append(word)
    return "/".join(words)


def _decode_header(block: bytes, position: int) -> _Header:
    if len(block) != BLOCK_BYTES:
        raise ContentError(f"tar: {len(block)} bytes at {position}: the archive was cut")
    checksum = sum(block) - sum(block[148:156]) + 8 * 0x20
    if _number(block[148:156], position) != checksum:
        raise ContentError(f"tar: no header at {position}: not an uncompressed tar archive")
    name = _text(block[:100])
    # GNU tar keeps times where POSIX has the prefix; its magic ends in a space.
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return _Header(name, _number(block[124:136], position), block[156:157], _text(block[157:257]))


def _number(field: bytes, position: int) -> int:
    if field[0] == 0x80:  # GNU: big-endian base 256; 0xff would be negative
        value = int.from_bytes(field[1:], "big")
        if value >= 1 << 63:
            raise ContentError(f"tar: number out of range in the header at {position}")
        return value
    match = _OCTAL.fullmatch(field)
    if not match:
        raise ContentError(f"tar: no header at {position}: not an uncompressed tar archive")
    return int(match[1] or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _extend(pax: dict[str, str], kind: bytes, text: bytes, position: int) -> None:
    """Take what an extension says about the next header; global ones say nothing we need."""
    if kind == _GNU_LONG_NAME:
        pax["path"] = _text(text[:NAME_LIMIT_BYTES])
    elif kind == _GNU_LONG_LINK:
        pax["linkpath"] = _text(text[:NAME_LIMIT_BYTES])
    elif kind == _PAX:
        pax.update(_decode_pax(text, position))


def _decode_pax(text: bytes, position: int) -> dict[str, str]:
    """Lines ``LENGTH KEY=VALUE``, where LENGTH counts the whole line and its end."""
    records: dict[str, str] = {}
    start = 0
    while start < len(text):
        digits, space, _ = text[start : start + 8].partition(b" ")
        if not space or not digits.isdigit():
            raise ContentError(f"tar: broken PAX record in the header at {position}")
        end = start + int(digits)
        record = text[start + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if end > len(text) or not equals or not value.endswith(b"\n"):
            raise ContentError(f"tar: broken PAX record in the header at {position}")
        records[_text(key)] = _text(value[:-1])
        start = end
    size = records.get("size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 19):
        raise ContentError(f"tar: broken PAX size in the header at {position}")
    return records
