"""The chunk table and the dm-verity superblock of a seekable blob, by one range request.

They lie side by side at the end of the blob, the top of the hash tree behind them, so that
one request brings all that mounting needs.
"""

from dataclasses import dataclass

from lazyfs.errors import ImageFormatError
from lazyfs.interfaces import BlobSource
from lazyfs.model import ByteRange
from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.chunktable import (
    MAX_TABLE_BYTES,
    ChunkTable,
    check_chunk_digest,
    decode_skippable_header,
    decode_table,
)
from lazyfs.seekable.ondisk import SKIPPABLE_HEADER
from lazyfs.verity.params import VerityParams, decode_superblock
from lazyfs.verity.trusted import TrustedHashTree

HEAD_BYTES = 64 << 10
"""How much of the dm-verity payload is fetched along: superblock and upper levels."""

_HEADER = SKIPPABLE_HEADER.size_bytes


@dataclass(frozen=True, slots=True)
class VerityMetadata:
    """The dm-verity tree of a blob, of which nothing is proven yet but its root digest."""

    params: VerityParams
    root_digest: bytes
    payload: ByteRange
    """Superblock and tree, in the blob."""
    head: bytes
    """The beginning of the payload, unproven."""

    def tree(self) -> TrustedHashTree:
        """The tree, with what ``head`` holds of it already proven.

        Raises:
            ImageFormatError: the root digest is of another algorithm.
            HashBlockMismatchError: the top of the tree does not have the root digest.
        """
        tree = TrustedHashTree(self.params, self.root_digest)
        if self.params.data_blocks > 1:
            whole = min(len(self.head), tree.payload_size_bytes)
            whole -= whole % self.params.hash_block_size_bytes
            tree.add(ByteRange(0, whole), self.head[:whole])
        return tree


@dataclass(frozen=True, slots=True)
class LayerMetadata:
    """What the end of a seekable blob says."""

    table: ChunkTable
    """Proven by the annotations."""
    verity: VerityMetadata | None


async def fetch_metadata(annotations: SeekableAnnotations, source: BlobSource) -> LayerMetadata:
    """Fetch and check chunk table and dm-verity superblock.

    Raises:
        DigestMismatchError: the table is not the one that the annotations promise.
        ImageFormatError, PlanError: the metadata break the format or do not fit each other.
        SourceUnavailableError: they cannot be had.
    """
    space = annotations.table_space(source.size_bytes)
    verity = annotations.verity_space(source.size_bytes)
    if space.length > MAX_TABLE_BYTES + _HEADER:
        raise ImageFormatError(f"{space.length} bytes where a chunk table should be")
    head_bytes = 0 if verity is None else min(verity.length, _HEADER + HEAD_BYTES)
    data = await source.fetch(ByteRange(space.offset, space.length + head_bytes))
    length = _payload_length("chunk table", data, space)
    table_payload = data[_HEADER : _HEADER + length]
    check_chunk_digest(table_payload, annotations.chunk_digest)
    table = decode_table(table_payload, table_offset=annotations.chunk_table_offset)
    if verity is None or annotations.root_digest is None:
        return LayerMetadata(table, None)
    head = data[space.length :]
    return LayerMetadata(table, _verity(annotations.root_digest, verity, head, table))


def _verity(root_digest: bytes, space: ByteRange, head: bytes, table: ChunkTable) -> VerityMetadata:
    length = _payload_length("dm-verity tree", head, space)
    payload = ByteRange(space.offset + _HEADER, length)
    head = head[_HEADER : _HEADER + length]
    params = decode_superblock(head)
    blocks = -(-table.image_size_bytes // params.data_block_size_bytes)
    if params.data_blocks != blocks:
        raise ImageFormatError(
            f"dm-verity tree over {params.data_blocks} blocks, the image has {blocks}"
        )
    needed = TrustedHashTree(params, root_digest).payload_size_bytes
    if params.data_blocks > 1 and needed > length:
        raise ImageFormatError(f"dm-verity payload of {length} bytes, the tree needs {needed}")
    return VerityMetadata(params, root_digest, payload, head)


def _payload_length(what: str, frame: bytes, space: ByteRange) -> int:
    """Length of a skippable frame's payload, which must fit into ``space``."""
    try:
        return decode_skippable_header(frame, limit_bytes=space.length - _HEADER)
    except ImageFormatError as error:
        raise type(error)(f"{what} at byte {space.offset} of the blob: {error}") from error
