"""From a raw image to a seekable layer blob in a temporary file.

Chunks are compressed and hashed side by side. Those of file data are begun with while the layer
is still being read, and so their frames come before those of the metadata, with which the blob
begins: the file holds the frames as they came, and ``pieces`` gives them in the blob's order.
The blob must be whole before it can be pushed: its digest is wanted first, and the annotations
stand in the manifest. The image's digest (the diff ID) begins with the metadata, too, so the data
are read once more for it.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeVar

import trio

from lazyfs.convert.cutting import cut
from lazyfs.convert.images import FileImage, Image, PaddedImage, open_temporary, read_at, write_at
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.ordered import each, map_in_order
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
from lazyfs.verity.params import VerityParams, block_hasher, hash_blocks
from registry.digest import Digest

TREE_CHUNK_BYTES = 64 << 10
"""Chunks of a dm-verity tree that lies among the chunks: readers fetch so much of a tree at once,
and a mount needs the first of them."""

COPY_BYTES = 1 << 20

T = TypeVar("T")


class _Frame(NamedTuple):
    """One chunk, compressed and hashed."""

    data: bytes
    """Those of the compressed chunk."""
    digest: bytes
    leaves: bytes
    """Digests of the chunk's data blocks; empty without dm-verity, and for the tree itself."""


class _EarlyFrame(NamedTuple):
    """Where the frame of a chunk lies that was compressed before its image was finished."""

    frame: ByteRange
    """In the blob's file."""
    digest: bytes
    leaves: ByteRange
    """In the file of leaves."""


class _Chunk(NamedTuple):
    """One chunk on its way into the blob."""

    data: bytes
    frame: _Frame
    place: ByteRange | None
    """Where the frame lies in the blob's file, if it does."""


class BlobMaker:
    """Makes the seekable blob of one image. What writes runs in one thread at a time."""

    def __init__(
        self,
        files: "BlobFiles",
        options: ConvertOptions,
        workers: trio.CapacityLimiter,
    ) -> None:
        """Begin an empty blob.

        Args:
            files: empty, and to be kept open.
            options: how to cut, compress and prove.
            workers: bounds the threads.
        """
        self._files = files
        self._options = options
        self._workers = workers
        self._layout: BlobLayout = (
            SpecLayout()
            if options.layout is Layout.EROFS_SPEC
            else ContainerdLayout(options.chunk_size_bytes)
        )
        self._early: dict[ByteRange, _EarlyFrame] = {}
        self._early_leaves_bytes = 0
        self._segments: list[ByteRange] = []
        self._file_bytes = 0
        self._content_hash = hashlib.sha256()
        self._blob_hash = hashlib.sha256()
        self._blob_size_bytes = 0
        self._missing_bytes = 0
        self._chunks = 0
        self._tree: HashTreeWriter | None = None

    async def begin(
        self, spool: BinaryIO, chunks: trio.MemoryReceiveChannel[Sequence[ByteRange]]
    ) -> None:
        """Compress chunks of an image that is not finished yet.

        Args:
            spool: that the chunks lie in.
            chunks: as they become certain; closed when there are no more.

        Raises:
            OSError: the disk is full.
        """

        def work(where: ByteRange) -> tuple[ByteRange, _Frame]:
            return where, self._compress(read_at(spool, *where), hashed=self._options.verity)

        async def take(done: tuple[ByteRange, _Frame]) -> None:
            await self._in_thread(lambda: self._keep_early(*done))

        jobs = self._options.jobs
        await map_in_order(work, _flat(chunks), take, workers=self._workers, ahead=jobs)

    async def finish(self, image: Image, on_progress: Callable[[int], None]) -> WrappedImage:
        """Complete the blob.

        Args:
            image: read from worker threads.
            on_progress: told of image bytes done.

        Raises:
            ConversionError: the image is too large for the format with these options.
            OSError: the disk is full.
        """
        options = self._options
        check_fits(image.size_bytes, options)
        borders: Iterable[int] = ()
        if self._layout.tree_in_content:
            borders = image.borders
            if options.verity:
                image = PaddedImage(image, options.verity_block_size_bytes)
        self._missing_bytes = image.size_bytes
        if options.verity:
            self._tree = HashTreeWriter(
                image.size_bytes,
                partial(write_at, self._files.tree),
                algorithm=self._layout.verity_algorithm,
                block_size_bytes=options.verity_block_size_bytes,
            )
            if self._layout.tree_in_content:
                self._missing_bytes += self._tree.payload_size_bytes
        size, early = options.chunk_size_bytes, self._early
        await self._add_chunks(image, borders, size, early, on_progress)
        tree = await self._finish_tree()
        return await self._in_thread(lambda: self._finish(image.size_bytes, tree))

    async def pieces(self, on_progress: Callable[[int], None]) -> AsyncIterator[bytes]:
        """The finished blob."""
        for segment in self._segments:
            for where in cut(segment.length, (), COPY_BYTES):
                offset = segment.offset + where.offset
                piece = await trio.to_thread.run_sync(
                    read_at, self._files.blob, offset, where.length
                )
                on_progress(len(piece))
                yield piece

    def _compress(self, data: bytes, *, hashed: bool) -> _Frame:
        frame = compress_chunk(data, self._options.level)
        leaves = b""
        if hashed:
            block_hash = block_hasher(self._layout.verity_algorithm, b"", 1)
            leaves = hash_blocks(block_hash, self._options.verity_block_size_bytes, data)
        return _Frame(frame, self._frame_digest(frame), leaves)

    def _keep_early(self, where: ByteRange, frame: _Frame) -> None:
        leaves = ByteRange(self._early_leaves_bytes, len(frame.leaves))
        write_at(self._files.leaves, leaves.offset, frame.leaves)
        self._early_leaves_bytes = leaves.end
        self._early[where] = _EarlyFrame(self._append(frame.data), frame.digest, leaves)

    async def _finish_tree(self) -> VerityTree | None:
        if self._tree is None:
            return None
        root_digest, _ = await self._in_thread(self._tree.finish)
        size = self._tree.payload_size_bytes
        self._tree = None
        if self._layout.tree_in_content:
            chunk_size = min(TREE_CHUNK_BYTES, self._options.chunk_size_bytes)
            await self._add_chunks(FileImage(self._files.tree, size), (), chunk_size, {}, _nobody)
        return VerityTree(size, root_digest, self._options.verity_block_size_bytes)

    async def _add_chunks(
        self,
        image: Image,
        borders: Iterable[int],
        chunk_size_bytes: int,
        early: Mapping[ByteRange, _EarlyFrame],
        on_progress: Callable[[int], None],
    ) -> None:
        """Bring chunks into the blob's order, compressed before or now."""
        hashed = self._tree is not None

        def work(where: ByteRange) -> _Chunk:
            data = image.read(where.offset, where.length)
            start = where.offset - image.early_start
            known = early.get(ByteRange(start, where.length))
            if known is None:
                return _Chunk(data, self._compress(data, hashed=hashed), None)
            frame = read_at(self._files.blob, *known.frame)
            leaves = read_at(self._files.leaves, *known.leaves)
            return _Chunk(data, _Frame(frame, known.digest, leaves), known.frame)

        async def take(chunk: _Chunk) -> None:
            await self._in_thread(lambda: self._add(chunk))
            on_progress(len(chunk.data))

        block = self._options.verity_block_size_bytes
        wheres = each(cut(image.size_bytes, borders, chunk_size_bytes, block))
        jobs = self._options.jobs
        await map_in_order(work, wheres, take, workers=self._workers, ahead=jobs)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._workers)

    def _add(self, chunk: _Chunk) -> None:
        frame, digest, place = chunk.frame.data, chunk.frame.digest, chunk.place
        self._missing_bytes -= len(chunk.data)
        if self._layout.tree_in_content and not self._missing_bytes:
            aligned = aligned_frame(frame, self._blob_size_bytes, INDEX_ALIGNMENT_BYTES)
            if aligned != frame:
                frame, digest, place = aligned, self._frame_digest(aligned), None
        self._content_hash.update(chunk.data)
        self._layout.add_frame(len(chunk.data), len(frame), digest)
        if self._tree is not None:
            self._tree.add_digests(chunk.frame.leaves)
        self._chunks += 1
        self._place(frame, place)

    def _finish(self, image_size_bytes: int, tree: VerityTree | None) -> WrappedImage:
        content_digest = self._content_hash.hexdigest()
        tail = self._layout.finish(content_digest, tree)
        for piece in tail.pieces:
            self._place(piece, None)
        if tree is not None and tail.payload_follows:
            for where in cut(tree.payload_size_bytes, (), COPY_BYTES):
                self._place(read_at(self._files.tree, *where), None)
        return WrappedImage(
            digest=Digest("sha256", self._blob_hash.hexdigest()),
            size_bytes=self._blob_size_bytes,
            diff_id=Digest("sha256", content_digest),
            image_size_bytes=image_size_bytes,
            chunks=self._chunks,
            annotations=tail.annotations,
        )

    def _frame_digest(self, frame: bytes) -> bytes:
        return hashlib.new(self._layout.frame_algorithm, frame).digest()

    def _append(self, data: bytes) -> ByteRange:
        """Write behind what the blob's file holds."""
        place = ByteRange(self._file_bytes, len(data))
        write_at(self._files.blob, place.offset, data)
        self._file_bytes = place.end
        return place

    def _place(self, data: bytes, place: ByteRange | None) -> None:
        """Let ``data`` be next in the blob, written now unless they have a place."""
        place = place or self._append(data)
        if self._segments and self._segments[-1].end == place.offset:
            last = self._segments[-1]
            self._segments[-1] = ByteRange(last.offset, last.length + place.length)
        else:
            self._segments.append(place)
        self._blob_hash.update(data)
        self._blob_size_bytes += len(data)


class BlobFiles:
    """The temporary files of one blob."""

    def __init__(self) -> None:
        """Make empty ones.

        Raises:
            OSError: there is no room.
        """
        with ExitStack() as stack:
            self.blob = stack.enter_context(open_temporary())
            """Frames, in the order in which they came."""
            self.leaves = stack.enter_context(open_temporary())
            """Digests of data blocks of early chunks."""
            self.tree = stack.enter_context(open_temporary())
            """Superblock and tree, as in a blob."""
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


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


def _nobody(count_bytes: int) -> None:
    """Nobody wants to know."""


async def _flat(
    lists: trio.MemoryReceiveChannel[Sequence[ByteRange]],
) -> AsyncGenerator[ByteRange, None]:
    async for ranges in lists:
        for where in ranges:
            yield where
