"""Chunk frames: compress one, check one, decompress one with exactly bounded output.

Check a frame's digest before decompressing it. A fresh (de)compressor per frame costs
15 microseconds, little beside hashing the frame, and makes every function thread-safe.
"""

import zstandard

from lazyfs.errors import ImageFormatError
from lazyfs.seekable.digests import check
from lazyfs.seekable.ondisk import ZSTD_MAGIC

MAX_WINDOW_BYTES = 128 << 20
"""Largest window that a frame may ask for (what the zstd tool accepts by default)."""

DEFAULT_LEVEL = 3

_MAGIC = ZSTD_MAGIC.to_bytes(4, "little")
_UNKNOWN_SIZES = (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)


def decompress_chunk(frame: bytes, length: int) -> bytes:
    """The ``length`` bytes that ``frame`` holds.

    The frame may lack a content size (containerd's frames do). Output never passes
    ``length`` bytes, whatever the frame says.

    Raises:
        ImageFormatError: not exactly one whole zstd frame of exactly that content.
    """
    if frame[:4] != _MAGIC:
        raise ImageFormatError(f"chunk frame begins with {frame[:4].hex(' ')!r}, not zstd's magic")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        content = parameters.content_size
        if content not in _UNKNOWN_SIZES and content != length:
            raise ImageFormatError(f"chunk frame says it holds {content} bytes, not {length}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        chunk: bytes = decompressor.decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ImageFormatError(f"chunk frame of {len(frame)} bytes: {error}") from error
    if len(chunk) != length:
        raise ImageFormatError(f"chunk frame holds {len(chunk)} bytes, not {length}")
    return chunk


def compress_chunk(data: bytes | memoryview, level: int = DEFAULT_LEVEL) -> bytes:
    """One self-contained zstd frame with content size and checksum.

    The bytes depend on ``data``, ``level`` and the release of libzstd, and on nothing else.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    frame: bytes = compressor.compress(data)
    return frame


def verify_frame(frame: bytes, digest: bytes) -> None:
    """Check a compressed frame against the digest of the chunk table.

    Raises:
        DigestMismatchError: they differ.
    """
    check(frame, digest, "chunk frame")


def aligned_frame(frame: bytes, offset: int, alignment_bytes: int) -> bytes:
    """The same frame, ending at a multiple of ``alignment_bytes`` if it begins at ``offset``.

    It gets empty blocks, each a header of three bytes (RFC 8878, section 3.1.1.2), so that any
    alignment can be reached that is no multiple of three. What follows the last frame of a blob
    then lies aligned without a gap, and the frame stays one frame.
    """
    count = 0
    while (offset + len(frame) + 3 * count) % alignment_bytes:
        count += 1
    start = zstandard.frame_header_size(frame)
    return frame[:start] + bytes(3 * count) + frame[start:]
