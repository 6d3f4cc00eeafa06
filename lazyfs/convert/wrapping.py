"""From a raw image to a seekable layer blob in a temporary file.

Chunks are compressed and hashed side by side and written in order. The blob must be whole
before it can be pushed: its digest is wanted first, and the annotations stand in the manifest.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple, TypeVar

import trio

from lazyfs.convert.cutting import cut
from lazyfs.convert.images import FileImage, Image, PaddedImage, open_temporary, write_at
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.ordered import map_in_order
from lazyfs.convert.results import WrappedImage
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from lazyfs.seekable.chunktable import MAX_TABLE_BYTES
from lazyfs.seekable.frames import aligned_frame, compress_chunk
from lazyfs.seekable.layout import (
    INDEX_ALIGNMENT_BYTES,
    BlobLayout,
    ContainerdLayout,
    SpecLayout,
    VerityTree,
)
from lazyfs.seekable.mediatypes import Layout
from lazyfs.seekable.ondisk import HASHED_ENTRY, TABLE_HEADER
from lazyfs.seekable.skippable import MAX_SKIPPABLE_PAYLOAD
from lazyfs.verity.build import HashTreeWriter
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams
from registry.digest import Digest

TREE_CHUNK_BYTES = 64 << 10
"""Chunks of a dm-verity tree that lies among the chunks: readers fetch so much of a tree at once,
and a mount needs the first of them."""

COPY_BYTES = 1 << 20

T = TypeVar("T")


class _Chunk(NamedTuple):
    """One chunk, worked out."""

    data: bytes
    frame: bytes
    frame_digest: bytes
    leaves: bytes
    """Digests of its data blocks; empty without dm-verity, and for the tree itself."""


async def wrap_image(
    image: Image,
    blob: BinaryIO,
    options: ConvertOptions,
    workers: trio.CapacityLimiter,
    on_progress: Callable[[int], None],
) -> WrappedImage:
    """Write the seekable blob of ``image``.

    Args:
        image: read from worker threads.
        blob: empty, written from its start.
        options: how to cut, compress and prove.
        workers: bounds the threads.
        on_progress: told of image bytes done.

    Raises:
        ConversionError: the image is too large for the format with these options.
        OSError: the disk is full.

    Cancelled: what was written so far stays in ``blob``.
    """
    check_fits(image.size_bytes, options)
    layout: BlobLayout = ContainerdLayout(options.chunk_size_bytes)
    borders: Iterable[int] = ()
    if options.layout is Layout.EROFS_SPEC:
        layout = SpecLayout()
        borders = image.borders
        if options.verity:
            image = PaddedImage(image, options.verity_block_size_bytes)
    with open_temporary() as spool:
        wrapping = _Wrapping(image, blob, spool, layout, options, workers)
        await wrapping.add_image(image, borders, on_progress)
        return await wrapping.finish()


def check_fits(image_size_bytes: int, options: ConvertOptions) -> None:
    """Refuse, before the work begins, what could not be written or read in the end.

    Raises:
        ConversionError: says which option helps.
    """
    if image_size_bytes == 0:
        raise ConversionError("layer is an empty image")
    chunks = -(-image_size_bytes // options.chunk_size_bytes)
    if TABLE_HEADER.size_bytes + chunks * HASHED_ENTRY.size_bytes > MAX_TABLE_BYTES:
        raise ConversionError(
            f"image of {image_size_bytes} bytes has too many chunks of "
            f"{options.chunk_size_bytes} bytes; choose a larger --chunk-size"
        )
    if options.verity and options.layout is Layout.CONTAINERD:
        block = options.verity_block_size_bytes
        algorithm = ContainerdLayout.verity_algorithm
        shape = geometry(VerityParams(algorithm, block, block, -(-image_size_bytes // block)))
        if shape.payload_size_bytes > MAX_SKIPPABLE_PAYLOAD:
            raise ConversionError(
                f"image of {image_size_bytes} bytes has too large a hash tree with blocks of "
                f"{block} bytes; choose a larger --verity-block-size, or --no-verity"
            )


class _Wrapping:
    """The work on one blob. What writes runs in one thread at a time."""

    def __init__(
        self,
        image: Image,
        blob: BinaryIO,
        spool: BinaryIO,
        layout: BlobLayout,
        options: ConvertOptions,
        workers: trio.CapacityLimiter,
    ) -> None:
        self._image_size_bytes = image.size_bytes
        self._blob = blob
        self._spool = spool
        self._layout = layout
        self._options = options
        self._workers = workers
        self._content_hash = hashlib.sha256()
        self._blob_hash = hashlib.sha256()
        self._blob_size_bytes = 0
        self._chunks = 0
        self._tree: HashTreeWriter | None = None
        self._missing_bytes = image.size_bytes
        if options.verity:
            self._tree = HashTreeWriter(
                image.size_bytes,
                self._spool_tree,
                algorithm=layout.verity_algorithm,
                block_size_bytes=options.verity_block_size_bytes,
            )
            if layout.tree_in_content:
                self._missing_bytes += self._tree.payload_size_bytes

    async def add_image(
        self, image: Image, borders: Iterable[int], on_progress: Callable[[int], None]
    ) -> None:
        """Append the chunks of the image."""
        size = self._options.chunk_size_bytes
        await self._add_chunks(image, borders, size, self._tree, on_progress)

    async def finish(self) -> WrappedImage:
        """Append tree and metadata."""
        tree: VerityTree | None = None
        if self._tree is not None:
            root_digest, _ = await self._in_thread(self._tree.finish)
            size = self._tree.payload_size_bytes
            tree = VerityTree(size, root_digest, self._options.verity_block_size_bytes)
            if self._layout.tree_in_content:
                payload = FileImage(self._spool, size)
                chunk_size = min(TREE_CHUNK_BYTES, self._options.chunk_size_bytes)
                await self._add_chunks(payload, (), chunk_size, None, lambda _: None)
        return await self._in_thread(lambda: self._finish(tree))

    async def _add_chunks(
        self,
        image: Image,
        borders: Iterable[int],
        chunk_size_bytes: int,
        tree: HashTreeWriter | None,
        on_progress: Callable[[int], None],
    ) -> None:
        def work(where: ByteRange) -> _Chunk:
            data = image.read(where.offset, where.length)
            frame = compress_chunk(data, self._options.level)
            leaves = tree.hash_blocks(data) if tree is not None else b""
            return _Chunk(data, frame, self._frame_digest(frame), leaves)

        async def take(chunk: _Chunk) -> None:
            await self._in_thread(lambda: self._add(chunk))
            on_progress(len(chunk.data))

        await map_in_order(
            work,
            cut(image.size_bytes, borders, chunk_size_bytes, self._options.verity_block_size_bytes),
            take,
            workers=self._workers,
            ahead=self._options.jobs,
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._workers)

    def _add(self, chunk: _Chunk) -> None:
        frame, digest = chunk.frame, chunk.frame_digest
        self._missing_bytes -= len(chunk.data)
        if self._layout.tree_in_content and not self._missing_bytes:
            frame = aligned_frame(frame, self._blob_size_bytes, INDEX_ALIGNMENT_BYTES)
            digest = self._frame_digest(frame)
        self._content_hash.update(chunk.data)
        self._layout.add_frame(len(chunk.data), len(frame), digest)
        if self._tree is not None and chunk.leaves:
            self._tree.add_digests(chunk.leaves)
        self._chunks += 1
        self._write(frame)

    def _finish(self, tree: VerityTree | None) -> WrappedImage:
        content_digest = self._content_hash.hexdigest()
        tail = self._layout.finish(content_digest, tree)
        for piece in tail.pieces:
            self._write(piece)
        if tree is not None and tail.payload_follows:
            payload = FileImage(self._spool, tree.payload_size_bytes)
            for where in cut(payload.size_bytes, (), COPY_BYTES):
                self._write(payload.read(*where))
        self._blob.flush()
        return WrappedImage(
            digest=Digest("sha256", self._blob_hash.hexdigest()),
            size_bytes=self._blob_size_bytes,
            diff_id=Digest("sha256", content_digest),
            image_size_bytes=self._image_size_bytes,
            chunks=self._chunks,
            annotations=tail.annotations,
        )

    def _frame_digest(self, frame: bytes) -> bytes:
        return hashlib.new(self._layout.frame_algorithm, frame).digest()

    def _spool_tree(self, offset: int, blocks: bytes) -> None:
        write_at(self._spool, offset, blocks)

    def _write(self, data: bytes) -> None:
        self._blob.write(data)
        self._blob_hash.update(data)
        self._blob_size_bytes += len(data)
