"""Skippable frames: what a stock zstd decoder steps over (RFC 8878, section 3.1.2)."""

from lazyfs.errors import ImageFormatError
from lazyfs.seekable.chunktable import MAX_TABLE_BYTES
from lazyfs.seekable.ondisk import (
    SKIPPABLE_HEADER,
    SKIPPABLE_MAGIC,
    SkippableHeader,
    is_skippable,
)

MAX_SKIPPABLE_PAYLOAD = 2**32 - 1
"""Its length is a 32-bit field."""


def decode_skippable_header(data: bytes, *, limit_bytes: int = MAX_TABLE_BYTES) -> int:
    """Size in bytes of the payload behind a skippable frame's 8-byte header.

    Args:
        data: begins with the header.
        limit_bytes: longest payload that the caller takes, such as the room up to the next
            frame or to the end of the blob.

    Raises:
        ImageFormatError: not a skippable frame, or a longer one.
        TruncatedRecordError: fewer than 8 bytes.
    """
    header = SKIPPABLE_HEADER.decode(data)
    if not is_skippable(header.magic):
        raise ImageFormatError(f"not a skippable frame: magic {header.magic:#010x}")
    if header.payload_size > limit_bytes:
        raise ImageFormatError(
            f"skippable frame of {header.payload_size} bytes, at most {limit_bytes} are possible"
        )
    return header.payload_size


def encode_skippable_header(payload_size_bytes: int) -> bytes:
    """The header of a skippable frame.

    Raises:
        ImageFormatError: the payload is too long for the format.
    """
    if payload_size_bytes > MAX_SKIPPABLE_PAYLOAD:
        raise ImageFormatError(
            f"a skippable frame holds at most {MAX_SKIPPABLE_PAYLOAD} bytes, "
            f"not {payload_size_bytes}"
        )
    return SKIPPABLE_HEADER.encode(SkippableHeader(SKIPPABLE_MAGIC, payload_size_bytes))
