"""The chunk index of the EROFS image specification (section 3.4)."""

import struct
from array import array
from collections.abc import Sequence

from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.seekable.chunktable import MAX_CHUNK_BYTES, ChunkTable, check_frames
from lazyfs.seekable.digests import ALGORITHMS
from lazyfs.seekable.ondisk import (
    COMPRESSION_NONE,
    COMPRESSION_ZSTD,
    HASH_NONE,
    HASH_SHA2,
    INDEX_ENTRY,
    INDEX_HEADER,
    INDEX_MAGIC,
    INDEX_VERSION,
    IndexEntry,
    IndexHeader,
)


def decode_chunk_index(payload: bytes, chunks_end: int, *, compressed: bool) -> ChunkTable:
    """Decode an index; every field is suspect.

    Args:
        payload: header and entries.
        chunks_end: where the image data ends in the blob.
        compressed: whether the carrying layer is a zstd stream.

    Raises:
        ImageFormatError: it breaks the format, or does not fit the layer.
        UnsupportedFeatureError: a version or feature that lazyfs does not know. The layer can
            still be read from its start (section 8.2, requirement 6).
    """
    header = INDEX_HEADER.decode(payload)
    hash_size = _check_header(header, compressed=compressed)
    wanted = INDEX_HEADER.size_bytes + header.chunks * (INDEX_ENTRY.size_bytes + hash_size)
    if len(payload) != wanted:
        raise ImageFormatError(
            f"chunk index of {len(payload)} bytes, {header.chunks} chunks need {wanted}"
        )
    frame_offsets = array("Q")
    content_offsets = array("Q")
    checksums = bytearray()
    entries = memoryview(payload)[INDEX_HEADER.size_bytes :]
    for frame, content, checksum in struct.iter_unpack(f"<QQ{hash_size}s", entries):
        frame_offsets.append(frame)
        content_offsets.append(content)
        checksums += checksum
    size = header.uncompressed_size
    _check_content(content_offsets, size)
    if compressed:
        frame_offsets.append(chunks_end)
        check_frames(frame_offsets, content_offsets, size)
    else:
        if frame_offsets != content_offsets or size > chunks_end:
            raise ImageFormatError(
                "chunk index: the chunks of a raw layer do not lie in their order"
            )
        frame_offsets.append(size)
    digests = bytes(checksums) if hash_size else None
    return ChunkTable(
        size, content_offsets, frame_offsets, digests, compressed=compressed, padded=compressed
    )


def _check_header(header: IndexHeader, *, compressed: bool) -> int:
    """Check all but the number of chunks; give the size of a checksum in bytes."""
    if header.version != INDEX_VERSION:
        raise UnsupportedFeatureError(f"chunk index version {header.version}, known is 1")
    if header.compression not in (COMPRESSION_NONE, COMPRESSION_ZSTD):
        raise UnsupportedFeatureError(f"chunk index with compression {header.compression}")
    if header.flags:
        raise UnsupportedFeatureError(f"chunk index with flags {header.flags:#x}")
    if header.hash_algorithm not in (HASH_NONE, HASH_SHA2):
        raise UnsupportedFeatureError(f"chunk index with hash family {header.hash_algorithm}")
    if any(header.reserved):
        raise ImageFormatError(f"chunk index: reserved field is {header.reserved.hex()}, not 0")
    if compressed != (header.compression == COMPRESSION_ZSTD):
        raise ImageFormatError(
            f"chunk index with compression {header.compression} for a layer that is "
            f"{'' if compressed else 'not '}a zstd stream"
        )
    if header.hash_algorithm == HASH_NONE and header.hash_size:
        raise ImageFormatError(f"chunk index without hashes of {header.hash_size} bytes")
    if header.hash_algorithm == HASH_SHA2 and header.hash_size not in ALGORITHMS:
        raise ImageFormatError(f"chunk index with SHA-2 of {header.hash_size} bytes")
    return header.hash_size


def _check_content(offsets: "array[int]", size_bytes: int) -> None:
    """Chunks must fill the content from 0 to its end without gap, each of sane length."""
    if size_bytes >= 1 << 63:
        raise ImageFormatError(f"chunk index over {size_bytes} bytes")
    if bool(offsets) != bool(size_bytes) or (offsets and offsets[0]):
        raise ImageFormatError(
            f"chunk index: {len(offsets)} chunks from {offsets[0] if offsets else 0} for "
            f"{size_bytes} bytes"
        )
    for index, start in enumerate(offsets):
        end = offsets[index + 1] if index + 1 < len(offsets) else size_bytes
        if not start < end <= size_bytes:
            raise ImageFormatError(
                f"chunk index: chunk {index} begins at {start} and ends at {end} of {size_bytes}"
            )
        if end - start > MAX_CHUNK_BYTES:
            raise UnsupportedFeatureError(
                f"chunk of {end - start} bytes, at most {MAX_CHUNK_BYTES} are supported"
            )


def encode_chunk_index(
    *,
    content_size_bytes: int,
    content_offsets: Sequence[int],
    frame_offsets: Sequence[int],
    checksums: Sequence[bytes] | None,
    compressed: bool = True,
) -> bytes:
    """Encode an index.

    Args:
        content_size_bytes: of the image data, the dm-verity tree included.
        content_offsets: where each chunk begins in the image data.
        frame_offsets: where each chunk's stored bytes begin in the blob.
        checksums: SHA-256 or SHA-512 of each chunk's stored bytes; None writes none.
        compressed: whether each chunk is stored as a zstd frame.
    """
    count = len(content_offsets)
    if len(frame_offsets) != count or (checksums is not None and len(checksums) != count):
        raise AssertionError(f"{len(frame_offsets)} frames for {count} chunks")
    header = IndexHeader(
        magic=INDEX_MAGIC,
        version=INDEX_VERSION,
        compression=COMPRESSION_ZSTD if compressed else COMPRESSION_NONE,
        flags=0,
        uncompressed_size=content_size_bytes,
        chunks=count,
        hash_algorithm=HASH_SHA2 if checksums else HASH_NONE,
        hash_size=len(checksums[0]) if checksums else 0,
        reserved=b"",
    )
    out = bytearray(INDEX_HEADER.encode(header))
    for index in range(count):
        out += INDEX_ENTRY.encode(IndexEntry(frame_offsets[index], content_offsets[index]))
        if checksums is not None:
            out += checksums[index]
    return bytes(out)
