"""The chunk table: image offset to chunk, chunk to frame in the blob and its digest.

``ChunkTable`` knows no layout; each layout is a decoder that gives one. Memory: 8 bytes and
a digest per chunk (1.8 MB for 100 GB in chunks of 4 MiB), no object per entry. Every value
from the table is checked on decoding, so that its methods cannot give a range outside the
frames or the image. Decode only what ``check_chunk_digest`` has accepted.
"""

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lazyfs.errors import DigestMismatchError, ImageFormatError, UnsupportedFeatureError
from lazyfs.model import ByteRange
from lazyfs.seekable.ondisk import (
    HASH_NONE,
    HASH_SHA512,
    SHA512_BYTES,
    SKIPPABLE_HEADER,
    SKIPPABLE_MAGIC,
    TABLE_HEADER,
    TABLE_MAGIC,
    TABLE_VERSION,
    SkippableHeader,
    TableHeader,
    is_skippable,
)

MAX_TABLE_BYTES = 128 << 20
"""Largest chunk table accepted: 1.8 million chunks, which is 117 GB in chunks of 64 KiB."""

MAX_CHUNK_BYTES = 64 << 20
"""Largest chunk accepted: a read needs the whole chunk in memory."""

FRAME_SLACK_BYTES = 64 << 10
"""A frame may be this much longer than twice its chunk (no encoder comes near)."""

MAX_SKIPPABLE_PAYLOAD = 2**32 - 1
"""Its length is a 32-bit field (RFC 8878, section 3.1.2)."""


class ChunkTable:
    """Where each chunk of an image lies in the image and in the blob; immutable."""

    __slots__ = ("_digests", "_frame_offsets", "_image_offsets", "image_size_bytes")

    def __init__(
        self,
        image_size_bytes: int,
        image_offsets: Sequence[int],
        frame_offsets: "array[int]",
        digests: bytes | None,
    ) -> None:
        """Take checked values.

        Args:
            image_size_bytes: length of the raw image.
            image_offsets: where each chunk begins in the image, increasing from 0; a
                ``range`` when all chunks have one size.
            frame_offsets: where each frame begins in the blob, increasing, and behind them
                where the last one ends.
            digests: SHA-512 of each compressed frame, joined; None when the table has none.
        """
        self.image_size_bytes = image_size_bytes
        self._image_offsets = image_offsets
        self._frame_offsets = frame_offsets
        self._digests = digests

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._image_offsets)

    def frame(self, index: int) -> ByteRange:
        """The compressed frame of a chunk, in the blob."""
        start = self._frame_offsets[index]
        return ByteRange(start, self._frame_offsets[index + 1] - start)

    def chunk(self, index: int) -> ByteRange:
        """The bytes of the image that a chunk holds."""
        start = self._image_offsets[index]
        last = index == len(self._image_offsets) - 1
        end = self.image_size_bytes if last else self._image_offsets[index + 1]
        return ByteRange(start, end - start)

    def digest(self, index: int) -> bytes | None:
        """SHA-512 of a chunk's compressed frame; None when the table has no digests."""
        if self._digests is None:
            return None
        return self._digests[index * SHA512_BYTES : (index + 1) * SHA512_BYTES]

    def index_at(self, image_offset: int) -> int:
        """The chunk that holds the byte at ``image_offset``."""
        if not 0 <= image_offset < self.image_size_bytes:
            raise AssertionError(f"offset {image_offset} is not in the image")
        return bisect_right(self._image_offsets, image_offset) - 1


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


def check_chunk_digest(payload: bytes, digest: bytes) -> None:
    """Check a chunk table against the digest that the annotations promise.

    Raises:
        DigestMismatchError: they differ.
    """
    found = hashlib.sha512(payload).digest()
    if found != digest:
        raise DigestMismatchError(
            f"chunk table of {len(payload)} bytes: wanted sha512:{digest.hex()}, "
            f"found sha512:{found.hex()}"
        )


def decode_table(payload: bytes, *, table_offset: int) -> ChunkTable:
    """Decode a chunk table, whatever its layout.

    Args:
        payload: of the table's skippable frame.
        table_offset: where that frame begins in the blob; the last chunk's frame ends there.

    Raises:
        ImageFormatError: the table breaks the format.
        UnsupportedFeatureError: a layout or feature that lazyfs does not know.
    """
    if len(payload) > MAX_TABLE_BYTES:
        raise ImageFormatError(
            f"chunk table of {len(payload)} bytes, at most {MAX_TABLE_BYTES} are accepted"
        )
    for layout in _LAYOUTS:
        if layout.matches(payload):
            if layout.decode is None:
                raise UnsupportedFeatureError(
                    f"chunk table in the layout of {layout.name}, which is not supported"
                )
            return layout.decode(payload, table_offset)
    raise ImageFormatError(f"not a chunk table: it begins with {payload[:8].hex(' ')!r}")


def _decode_containerd(payload: bytes, table_offset: int) -> ChunkTable:
    """Decode the layout of containerd pull request 12764; every field is suspect."""
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
    image_offsets = range(0, size, header.chunk_size)
    _check_frames(offsets, table_offset, 2 * min(size, header.chunk_size) + FRAME_SLACK_BYTES)
    offsets.append(table_offset)
    return ChunkTable(size, image_offsets, offsets, bytes(digests) if hashed else None)


def _check_frames(offsets: "array[int]", table_offset: int, longest_bytes: int) -> None:
    """Frames must fill the blob from 0 to the table without gap, each of sane length."""
    if table_offset >= 1 << 63:
        raise ImageFormatError(f"chunk table at offset {table_offset}")
    first = offsets[0] if offsets else table_offset
    if first != 0:
        raise ImageFormatError(f"chunk table: the first frame begins at {first}, not at 0")
    previous = 0
    for index in range(1, len(offsets) + 1):
        end = offsets[index] if index < len(offsets) else table_offset
        if not previous < end <= table_offset:
            raise ImageFormatError(
                f"chunk table: frame {index - 1} begins at {previous} and ends at {end}, "
                f"the table begins at {table_offset}"
            )
        if end - previous > longest_bytes:
            raise ImageFormatError(
                f"chunk table: frame {index - 1} of {end - previous} bytes at {previous}, "
                f"at most {longest_bytes} are accepted"
            )
        previous = end


def encode_table(
    *,
    image_size_bytes: int,
    chunk_size_bytes: int,
    frame_offsets: Sequence[int],
    digests: Sequence[bytes] | None,
) -> bytes:
    """Encode a table in the containerd layout.

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


class _Layout(NamedTuple):
    """How to recognise a table layout, and its decoder if there is one."""

    name: str
    matches: Callable[[bytes], bool]
    decode: Callable[[bytes, int], ChunkTable] | None


_SWAPPED_MAGIC = TABLE_MAGIC.to_bytes(4, "big")
_SEEK_TABLE_MAGIC = bytes.fromhex("b1ea928f")

_LAYOUTS = (
    _Layout(
        "containerd",
        lambda payload: payload.startswith(TABLE_MAGIC.to_bytes(4, "little")),
        _decode_containerd,
    ),
    _Layout(
        "the EROFS image specification (chunk index)",
        lambda payload: payload[:6] == _SWAPPED_MAGIC + b"\x01\x01",
        None,
    ),
    _Layout(
        "containerd's draft page on EROFS layers (or an uncompressed chunk index)",
        lambda payload: payload.startswith(_SWAPPED_MAGIC),
        None,
    ),
    _Layout(
        "the zstd seekable format (seek table)",
        lambda payload: payload.endswith(_SEEK_TABLE_MAGIC),
        None,
    ),
)
"""In the order of the test; only the first bytes tell the look-alikes apart."""
