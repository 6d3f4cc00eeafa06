"""Byte ranges of a blob: checked before use, written and read as HTTP has them (RFC 9110, 14)."""

import re
from collections.abc import Sequence

from registry.errors import ContentError, ProtocolError

Range = tuple[int, int]
"""Offset and length in bytes."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)


def check_range(offset: int, length: int, size_bytes: int, what: str) -> None:
    """Refuse a range that is not inside ``size_bytes`` bytes.

    Raises:
        ContentError: negative, or passing the end.
    """
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise ContentError(
            f"{what}: {length} bytes at {offset} are not inside its {size_bytes} bytes"
        )


def range_header(ranges: Sequence[Range]) -> str:
    """The value of ``Range`` for one or more ranges, of at least one byte each."""
    return "bytes=" + ",".join(f"{offset}-{offset + length - 1}" for offset, length in ranges)


def check_content_range(
    header: str | None, offset: int, length: int, size_bytes: int, what: str
) -> None:
    """Check that a partial answer (206) is the part that was asked for.

    Raises:
        ProtocolError: another part, or no such header (as with several ranges in one answer).
        ContentError: the whole has another size than was promised.
    """
    match = _CONTENT_RANGE.fullmatch(header or "")
    if not match:
        raise ProtocolError(f"{what}: partial answer with Content-Range {header!r:.80}")
    first, last, whole = match.groups()
    if (int(first), int(last)) != (offset, offset + length - 1):
        raise ProtocolError(
            f"{what}: asked for bytes {offset}-{offset + length - 1}, got {first}-{last}"
        )
    if whole != "*" and int(whole) != size_bytes:
        raise ContentError(f"{what}: is {whole} bytes there, but its descriptor says {size_bytes}")
