"""Chunk tables of any layout: told apart by their first bytes, then decoded."""

from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.seekable.chunkindex import decode_chunk_index
from lazyfs.seekable.chunktable import MAX_TABLE_BYTES, ChunkTable
from lazyfs.seekable.containerdtable import decode_containerd_table
from lazyfs.seekable.digests import check
from lazyfs.seekable.ondisk import INDEX_MAGIC, TABLE_MAGIC


def check_table_digest(payload: bytes, digest: bytes) -> None:
    """Check a chunk table against the digest that the manifest promises.

    Raises:
        DigestMismatchError: they differ.
    """
    check(payload, digest, "chunk table")


def decode_table(payload: bytes, *, chunks_end: int, compressed: bool = True) -> ChunkTable:
    """Decode a chunk table, whatever its layout.

    Args:
        payload: the table, without a frame header. Decode only what ``check_table_digest`` has
            accepted, or what a dm-verity tree will prove.
        chunks_end: where the chunks end in the blob.
        compressed: whether the blob is a zstd stream.

    Raises:
        ImageFormatError: the table breaks the format.
        UnsupportedFeatureError: a layout or feature that lazyfs does not know.
    """
    if len(payload) > MAX_TABLE_BYTES:
        raise ImageFormatError(
            f"chunk table of {len(payload)} bytes, at most {MAX_TABLE_BYTES} are accepted"
        )
    if payload.startswith(_CONTAINERD):
        return decode_containerd_table(payload, chunks_end)
    if compressed and payload.startswith(_CONTAINERD_DRAFT):
        raise UnsupportedFeatureError("chunk table as in containerd's draft page on EROFS layers")
    if payload.startswith(_CHUNK_INDEX):
        return decode_chunk_index(payload, chunks_end, compressed=compressed)
    if payload.endswith(_SEEK_TABLE):
        raise UnsupportedFeatureError("chunk table of the zstd seekable format")
    raise ImageFormatError(f"not a chunk table: it begins with {payload[:8].hex(' ')!r}")


_CONTAINERD = TABLE_MAGIC.to_bytes(4, "little")
_CHUNK_INDEX = INDEX_MAGIC.to_bytes(4, "little")
_CONTAINERD_DRAFT = _CHUNK_INDEX + bytes.fromhex("01000000")
"""Its 32-bit version looks like an index of uncompressed chunks, which no zstd stream has."""
_SEEK_TABLE = bytes.fromhex("b1ea928f")
