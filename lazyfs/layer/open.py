"""From the plan of a layer to its reader, by as few requests as the format allows.

A seekable layer costs one range request: chunk table, verity superblock and the top of the
hash tree lie side by side at the end of the blob.
"""

import dataclasses

from lazyfs.errors import ImageFormatError, LazyfsError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.fetcher import Engine, PieceFetcher
from lazyfs.layer.hashes import PIECE_BYTES, HashPieces
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.raw import RawLayer
from lazyfs.layer.seekable import Chunks, FrameLayer, StoredLayer, VerityLayer
from lazyfs.layer.whole import open_whole
from lazyfs.model import ByteRange, VerifyMode
from lazyfs.plan import LayerMode, LayerPlan
from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.chunktable import (
    MAX_TABLE_BYTES,
    ChunkTable,
    check_chunk_digest,
    decode_skippable_header,
    decode_table,
)
from lazyfs.seekable.ondisk import SKIPPABLE_HEADER
from lazyfs.verity.params import decode_superblock
from lazyfs.verity.trusted import TrustedHashTree

_HEADER = SKIPPABLE_HEADER.size_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class LayerContext:
    """What a layer is opened with."""

    number: int
    """Position in the image, from 0 at the bottom; names the layer in the page memory."""
    name: str
    """Image and layer, for log lines."""
    verify: VerifyMode
    engine: Engine
    pages: PageMemory


@dataclasses.dataclass(frozen=True, slots=True)
class OpenLayer:
    """An opened layer and what is known of it."""

    reader: PagedReader
    mode: LayerMode
    lazy: bool
    why: str
    proof: str
    """What proves its bytes, for ``lazyfs status``."""
    chunks: Chunks | None


async def open_layer(
    plan: LayerPlan, source: BlobSource, counters: LayerCounters, context: LayerContext
) -> OpenLayer:
    """Open one layer.

    Raises:
        LazyfsError: of the kind that happened, naming the layer: its metadata are not what the
            manifest promises, break the format, or cannot be had.
    """
    try:
        if plan.mode is LayerMode.SEEKABLE and plan.annotations is not None:
            return await _open_seekable(plan, plan.annotations, source, counters, context)
        if plan.mode is LayerMode.RAW:
            raw = RawLayer(context.number, source, context.pages, counters)
            return OpenLayer(raw, plan.mode, True, plan.why, "nothing", None)
        whole = await open_whole(
            plan, source, counters, context.engine, context.pages, context.number
        )
        proof = f"{plan.descriptor.digest.algorithm} of the whole blob"
        return OpenLayer(whole, LayerMode.WHOLE, False, plan.why, proof, None)
    except LazyfsError as error:
        raise type(error)(f"{context.name}: {error}") from error


async def _open_seekable(
    plan: LayerPlan,
    annotations: SeekableAnnotations,
    source: BlobSource,
    counters: LayerCounters,
    context: LayerContext,
) -> OpenLayer:
    table, verity_head = await _fetch_table(annotations, source)
    fetcher = PieceFetcher(context.engine, source, counters, context.name)
    digest = str(plan.descriptor.digest)
    verify = context.verify
    if verify is VerifyMode.ALWAYS and annotations.root_digest is not None:
        hashes = _open_tree(
            annotations,
            annotations.root_digest,
            table,
            verity_head,
            source,
            fetcher,
            counters,
            context.name,
        )
        chunks = Chunks(table, digest, "data", verify=True)
        reader: PagedReader = VerityLayer(
            context.number, chunks, fetcher, context.pages, counters, hashes, context.name
        )
        algorithm = hashes.tree.params.algorithm
        proof = f"SHA-512 of each frame, dm-verity ({algorithm}) of each block"
    elif table.digest(0) is None if len(table) else False:
        raise ImageFormatError("neither the chunk table nor a dm-verity tree can prove the chunks")
    elif verify is VerifyMode.ALWAYS:
        chunks = Chunks(table, digest, "frame", verify=True)
        reader = FrameLayer(
            context.number,
            chunks,
            fetcher,
            context.pages,
            counters,
            context.engine.workers,
            context.name,
        )
        proof = "SHA-512 of each frame"
        counters.notes.append("no dm-verity tree: checked by the SHA-512 of its frames only")
    else:
        chunks = Chunks(table, digest, "data", verify=verify is VerifyMode.FETCH)
        reader = StoredLayer(context.number, chunks, fetcher, context.pages, counters)
        proof = "SHA-512 of each frame on arrival" if verify is VerifyMode.FETCH else "nothing"
    return OpenLayer(reader, plan.mode, True, plan.why, proof, chunks)


async def _fetch_table(
    annotations: SeekableAnnotations, source: BlobSource
) -> tuple[ChunkTable, bytes]:
    """The proven chunk table, and the (unproven) beginning of the dm-verity frame."""
    space = annotations.table_space(source.size_bytes)
    verity = annotations.verity_space(source.size_bytes)
    if space.length > MAX_TABLE_BYTES + _HEADER:
        raise ImageFormatError(f"{space.length} bytes where a chunk table should be")
    head_bytes = 0 if verity is None else min(verity.length, _HEADER + PIECE_BYTES)
    data = await source.fetch(ByteRange(space.offset, space.length + head_bytes))
    length = decode_skippable_header(data, limit_bytes=space.length - _HEADER)
    payload = data[_HEADER : _HEADER + length]
    check_chunk_digest(payload, annotations.chunk_digest)
    table = decode_table(payload, table_offset=annotations.chunk_table_offset)
    return table, data[space.length :]


def _open_tree(
    annotations: SeekableAnnotations,
    root_digest: bytes,
    table: ChunkTable,
    head: bytes,
    source: BlobSource,
    fetcher: PieceFetcher,
    counters: LayerCounters,
    name: str,
) -> HashPieces:
    space = annotations.verity_space(source.size_bytes)
    if space is None:
        raise AssertionError("a root digest without a dm-verity frame")
    length = decode_skippable_header(head, limit_bytes=space.length - _HEADER)
    payload = ByteRange(space.offset + _HEADER, length)
    params = decode_superblock(head[_HEADER:])
    blocks = -(-table.image_size_bytes // params.data_block_size_bytes)
    if params.data_blocks != blocks:
        raise ImageFormatError(
            f"dm-verity tree over {params.data_blocks} blocks, the image has {blocks}"
        )
    tree = TrustedHashTree(params, root_digest)
    if params.data_blocks > 1 and tree.payload_size_bytes > payload.length:
        raise ImageFormatError(
            f"dm-verity payload of {payload.length} bytes, the tree needs {tree.payload_size_bytes}"
        )
    if params.data_blocks > 1:
        whole = min(len(head) - _HEADER, tree.payload_size_bytes)
        whole -= whole % params.hash_block_size_bytes
        tree.add(ByteRange(0, whole), head[_HEADER : _HEADER + whole])
    return HashPieces(tree, root_digest, payload, fetcher, counters, name)
