"""Records of both chunk table layouts and of zstd.

The chunk table of containerd (pull request 12764) and the chunk index of the EROFS image
specification (section 3.4) have nothing in common but the purpose.
"""

from typing import Annotated, NamedTuple

from lazyfs.ondisk import U8, U16, U32, U64, Bytes64, Layout

ZSTD_MAGIC = 0xFD2FB528
"""First four bytes of a zstd frame (RFC 8878, section 3.1.1)."""

SKIPPABLE_MAGIC = 0x184D2A50
"""First of the sixteen magics of a skippable frame (RFC 8878, section 3.1.2)."""

TABLE_MAGIC = 0xCDE4EC67
TABLE_VERSION = 1

HASH_NONE = 0
HASH_SHA512 = 1

SHA512_BYTES = 64
SHA256_BYTES = 32

INDEX_MAGIC = 0x67ECE4CD
"""The bytes CD E4 EC 67: those of ``TABLE_MAGIC`` backwards."""
INDEX_VERSION = 1
COMPRESSION_NONE = 0
COMPRESSION_ZSTD = 1
HASH_SHA2 = 1


class SkippableHeader(NamedTuple):
    """What a stock zstd decoder steps over."""

    magic: U32  # 0x00  0x184D2A50..0x184D2A5F
    payload_size: U32  # 0x04


class TableHeader(NamedTuple):
    """Begins the payload of the chunk table's frame; packed."""

    magic: U32  # 0x00
    version: U32  # 0x04
    uncompressed_size: U64  # 0x08  of the raw image, without verity padding
    chunk_size: U32  # 0x10  uncompressed bytes per chunk; only the last may be short
    hash_algorithm: U8  # 0x14
    reserved: U16  # 0x15  must be 0


class HashedEntry(NamedTuple):
    """One chunk, with ``HASH_SHA512``."""

    block_offset: U64  # 0x00  of the frame's first byte, in the blob
    digest: Bytes64  # 0x08  SHA-512 of the compressed frame


class PlainEntry(NamedTuple):
    """One chunk, with ``HASH_NONE``."""

    block_offset: U64  # 0x00


class IndexHeader(NamedTuple):
    """Begins a chunk index (EROFS image specification, section 3.4.1)."""

    magic: U32  # 0x00
    version: U8  # 0x04
    compression: U8  # 0x05  of each chunk as it lies in the blob
    flags: U16  # 0x06  must be 0
    uncompressed_size: U64  # 0x08  of the content, the dm-verity tree included
    chunks: U32  # 0x10
    hash_algorithm: U8  # 0x14
    hash_size: U8  # 0x15  bytes of each checksum
    reserved: Annotated[bytes, "10s"]  # 0x16  must be 0


class IndexEntry(NamedTuple):
    """One chunk (section 3.4.2); its checksum follows, of the bytes as stored."""

    block_offset: U64  # 0x00  of the first stored byte, in the blob
    uncompressed_offset: U64  # 0x08  in the content


SKIPPABLE_HEADER = Layout(SkippableHeader, size_bytes=8)
TABLE_HEADER = Layout(TableHeader, size_bytes=23)
HASHED_ENTRY = Layout(HashedEntry, size_bytes=8 + SHA512_BYTES)
PLAIN_ENTRY = Layout(PlainEntry, size_bytes=8)
INDEX_HEADER = Layout(IndexHeader, size_bytes=32)
INDEX_ENTRY = Layout(IndexEntry, size_bytes=16)


def is_skippable(magic: int) -> bool:
    """Whether ``magic`` begins a skippable frame."""
    return magic & ~0xF == SKIPPABLE_MAGIC
