"""The chunk table of containerd pull request 12764."""

import struct
from array import array
from collections.abc import Sequence

from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.seekable.chunktable import MAX_CHUNK_BYTES, ChunkTable, check_frames
from lazyfs.seekable.ondisk import (
    HASH_NONE,
    HASH_SHA512,
    SHA512_BYTES,
    TABLE_HEADER,
    TABLE_MAGIC,
    TABLE_VERSION,
    TableHeader,
)


def decode_containerd_table(payload: bytes, chunks_end: int) -> ChunkTable:
    """Decode a table; every field is suspect.

    Args:
        payload: of the table's skippable frame.
        chunks_end: where that frame begins in the blob; the last chunk's frame ends there.

    Raises:
        ImageFormatError: it breaks the format.
        UnsupportedFeatureError: a version or feature that lazyfs does not know.
    """
    header = TABLE_HEADER.decode(payload)
    if header.version != TABLE_VERSION:
        raise UnsupportedFeatureError(f"chunk table version {header.version}, known is 1")
    if header.hash_algorithm not in (HASH_NONE, HASH_SHA512):
        raise UnsupportedFeatureError(f"chunk table with hash algorithm {header.hash_algorithm}")
    if header.reserved != 0:
        raise ImageFormatError(f"chunk table: reserved field is {header.reserved:#x}, not 0")
    if header.chunk_size == 0:
        raise ImageFormatError("chunk table: chunk size is 0")
    size = header.uncompressed_size
    if min(size, header.chunk_size) > MAX_CHUNK_BYTES:
        raise UnsupportedFeatureError(
            f"chunks of {header.chunk_size} bytes, at most {MAX_CHUNK_BYTES} are supported"
        )
    hashed = header.hash_algorithm == HASH_SHA512
    entry_size = 8 + (SHA512_BYTES if hashed else 0)
    chunks = -(-size // header.chunk_size)
    wanted = TABLE_HEADER.size_bytes + chunks * entry_size
    if len(payload) != wanted:
        raise ImageFormatError(
            f"chunk table of {len(payload)} bytes, {chunks} chunks need {wanted}"
        )
    entries = memoryview(payload)[TABLE_HEADER.size_bytes :]
    offsets = array("Q")
    digests = bytearray()
    if hashed:
        for offset, digest in struct.iter_unpack(f"<Q{SHA512_BYTES}s", entries):
            offsets.append(offset)
            digests += digest
    else:
        offsets.extend(offset for (offset,) in struct.iter_unpack("<Q", entries))
    content_offsets = range(0, size, header.chunk_size)
    offsets.append(chunks_end)
    if offsets[0] != 0:
        raise ImageFormatError(f"chunk table: the first frame begins at {offsets[0]}, not at 0")
    check_frames(offsets, content_offsets, size)
    return ChunkTable(size, content_offsets, offsets, bytes(digests) if hashed else None)


def encode_containerd_table(
    *,
    image_size_bytes: int,
    chunk_size_bytes: int,
    frame_offsets: Sequence[int],
    digests: Sequence[bytes] | None,
) -> bytes:
    """Encode a table.

    Args:
        image_size_bytes: length of the raw image.
        chunk_size_bytes: of every chunk but the last.
        frame_offsets: where each frame begins in the blob.
        digests: SHA-512 of each frame; None writes a table without digests.
    """
    chunks = -(-image_size_bytes // chunk_size_bytes)
    if len(frame_offsets) != chunks or (digests is not None and len(digests) != chunks):
        raise AssertionError(f"{len(frame_offsets)} frames for {chunks} chunks")
    algorithm = HASH_NONE if digests is None else HASH_SHA512
    header = TableHeader(
        TABLE_MAGIC, TABLE_VERSION, image_size_bytes, chunk_size_bytes, algorithm, 0
    )
    out = bytearray(TABLE_HEADER.encode(header))
    for index, offset in enumerate(frame_offsets):
        out += offset.to_bytes(8, "little")
        if digests is not None:
            out += digests[index]
    return bytes(out)
