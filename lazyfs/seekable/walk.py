"""Walk the frames of a blob without its annotations, as tools do.

A frame's length is not in its header: each block header must be visited, so this reads a few
bytes per 128 KiB of the whole blob. Mounting never does that.
"""

from typing import NamedTuple

from lazyfs.errors import ImageFormatError
from lazyfs.model import ByteRange
from lazyfs.seekable.ondisk import (
    INDEX_MAGIC,
    SKIPPABLE_HEADER,
    TABLE_MAGIC,
    ZSTD_MAGIC,
    is_skippable,
)
from lazyfs.steps import Need, Steps

MAX_FRAMES = 1 << 21
"""Frames visited at most (the largest chunk table has fewer entries)."""

_LONGEST_HEADER = 18
_BLOCK_HEADER = 3
_BLOCK_RLE = 1
_BLOCK_RESERVED = 3
_VERITY_SIGNATURE = b"verity\0\0"


class FrameSpan(NamedTuple):
    """One frame of a blob: header, content and, if it has one, checksum."""

    where: ByteRange
    begins: bytes
    """First bytes (up to 8) of a skippable frame's payload; empty for a zstd frame."""
    skippable: bool


class MetadataSpans(NamedTuple):
    """The frames that annotations would point to; whole frames, headers included."""

    chunk_table: ByteRange
    verity: ByteRange | None


def walk_frames(blob_size_bytes: int) -> Steps[list[FrameSpan]]:
    """All frames of a blob, which must fill it.

    Raises:
        ImageFormatError: anything else than whole frames, or too many.
    """
    spans: list[FrameSpan] = []
    offset = 0
    while offset < blob_size_bytes:
        if len(spans) == MAX_FRAMES:
            raise ImageFormatError(f"more than {MAX_FRAMES} frames")
        head = yield Need(0, offset, min(_LONGEST_HEADER, blob_size_bytes - offset))
        magic = int.from_bytes(head[:4], "little")
        if is_skippable(magic):
            size = SKIPPABLE_HEADER.size_bytes + SKIPPABLE_HEADER.decode(head).payload_size
            span = FrameSpan(ByteRange(offset, size), head[8 : min(size, 16)], skippable=True)
        elif magic == ZSTD_MAGIC:
            size = yield from _zstd_frame_size(head, offset, blob_size_bytes)
            span = FrameSpan(ByteRange(offset, size), b"", skippable=False)
        else:
            raise ImageFormatError(f"no zstd frame at offset {offset}: {head[:4].hex(' ')!r}")
        if span.where.end > blob_size_bytes:
            raise ImageFormatError(f"frame at offset {offset} passes the end of the blob")
        spans.append(span)
        offset = span.where.end
    return spans


def find_metadata(blob_size_bytes: int) -> Steps[MetadataSpans | None]:
    """Chunk table (or index) and dm-verity frame of a blob, or None for one without a table.

    Raises:
        ImageFormatError: not a run of frames.
    """
    spans = yield from walk_frames(blob_size_bytes)
    magics = (TABLE_MAGIC.to_bytes(4, "little"), INDEX_MAGIC.to_bytes(4, "little"))
    skippable = [span for span in spans if span.skippable]
    table = next((span.where for span in skippable if span.begins.startswith(magics)), None)
    verity = next((span.where for span in skippable if span.begins == _VERITY_SIGNATURE), None)
    return None if table is None else MetadataSpans(table, verity)


def _zstd_frame_size(head: bytes, start: int, blob_size_bytes: int) -> Steps[int]:
    """Length of the zstd frame at ``start`` (RFC 8878, sections 3.1.1.1 and 3.1.1.2)."""
    if len(head) < 5:
        raise ImageFormatError(f"zstd frame at offset {start} has no header")
    descriptor = head[4]
    single_segment = bool(descriptor & 0x20)
    content_size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    offset = start + 5 + (not single_segment) + dictionary_bytes + content_size_bytes
    last = False
    while not last:
        if offset + _BLOCK_HEADER > blob_size_bytes:
            raise ImageFormatError(f"zstd frame at offset {start} passes the end of the blob")
        header = int.from_bytes((yield Need(0, offset, _BLOCK_HEADER)), "little")
        last = bool(header & 1)
        kind = header >> 1 & 3
        if kind == _BLOCK_RESERVED:
            raise ImageFormatError(f"zstd block of reserved type at offset {offset}")
        offset += _BLOCK_HEADER + (1 if kind == _BLOCK_RLE else header >> 3)
    return offset + (4 if descriptor & 0x04 else 0) - start
