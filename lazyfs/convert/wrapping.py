"""From a raw image to a seekable layer blob in a temporary file.

Chunks are compressed and hashed side by side and written in order. The blob must be whole
before it can be pushed: its digest is wanted first, and the annotations stand in the manifest.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import trio

from lazyfs.convert.images import Image
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.ordered import map_in_order
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.chunktable import MAX_TABLE_BYTES
from lazyfs.seekable.frames import compress_chunk
from lazyfs.seekable.layout import BlobLayout, VerityPayload
from lazyfs.seekable.ondisk import HASHED_ENTRY, TABLE_HEADER
from lazyfs.seekable.skippable import MAX_SKIPPABLE_PAYLOAD
from lazyfs.verity.build import HashTreeBuilder
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams
from registry.digest import Digest

ALGORITHM = "sha512"


@dataclass(frozen=True, slots=True)
class WrappedImage:
    """What is to be known of a finished blob."""

    digest: Digest
    size_bytes: int
    diff_id: Digest
    """SHA-256 of the raw image."""
    image_size_bytes: int
    chunks: int
    annotations: SeekableAnnotations


class _Chunk(NamedTuple):
    """One chunk, worked out."""

    data: bytes
    frame: bytes
    frame_digest: bytes
    leaves: bytes
    """Digests of its data blocks; empty without dm-verity."""


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
    writer = _BlobWriter(image.size_bytes, blob, options)

    def work(where: ByteRange) -> _Chunk:
        data = image.read(where.offset, where.length)
        frame = compress_chunk(data, options.level)
        leaves = writer.tree.hash_blocks(data) if writer.tree is not None else b""
        return _Chunk(data, frame, hashlib.sha512(frame).digest(), leaves)

    async def take(chunk: _Chunk) -> None:
        await trio.to_thread.run_sync(writer.add, chunk, limiter=workers)
        on_progress(len(chunk.data))

    await map_in_order(
        work,
        _chunks(image.size_bytes, options.chunk_size_bytes),
        take,
        workers=workers,
        ahead=options.jobs,
    )
    return await trio.to_thread.run_sync(writer.finish, limiter=workers)


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
    if options.verity:
        block = options.verity_block_size_bytes
        shape = geometry(VerityParams(ALGORITHM, block, block, -(-image_size_bytes // block)))
        if shape.payload_size_bytes > MAX_SKIPPABLE_PAYLOAD:
            raise ConversionError(
                f"image of {image_size_bytes} bytes has too large a hash tree with blocks of "
                f"{block} bytes; choose a larger --verity-block-size, or --no-verity"
            )


def _chunks(image_size_bytes: int, chunk_size_bytes: int) -> Iterator[ByteRange]:
    for start in range(0, image_size_bytes, chunk_size_bytes):
        yield ByteRange(start, min(chunk_size_bytes, image_size_bytes - start))


class _BlobWriter:
    """Takes chunks in order; one thread at a time."""

    def __init__(self, image_size_bytes: int, blob: BinaryIO, options: ConvertOptions) -> None:
        self._image_size_bytes = image_size_bytes
        self._blob = blob
        self._layout = BlobLayout(image_size_bytes, options.chunk_size_bytes)
        self._image_hash = hashlib.sha256()
        self._blob_hash = hashlib.sha256()
        self._blob_size_bytes = 0
        self._chunks = 0
        self.tree = (
            HashTreeBuilder(algorithm=ALGORITHM, block_size_bytes=options.verity_block_size_bytes)
            if options.verity
            else None
        )

    def add(self, chunk: _Chunk) -> None:
        self._image_hash.update(chunk.data)
        self._layout.add_frame(len(chunk.frame), chunk.frame_digest)
        if self.tree is not None:
            self.tree.add_digests(chunk.leaves)
        self._chunks += 1
        self._write(chunk.frame)

    def finish(self) -> WrappedImage:
        verity = None
        if self.tree is not None:
            built = self.tree.finish()
            verity = VerityPayload(built.payload, built.root_digest)
        tail = self._layout.finish(verity)
        for piece in tail.pieces:
            self._write(piece)
        self._blob.flush()
        return WrappedImage(
            digest=Digest("sha256", self._blob_hash.hexdigest()),
            size_bytes=self._blob_size_bytes,
            diff_id=Digest("sha256", self._image_hash.hexdigest()),
            image_size_bytes=self._image_size_bytes,
            chunks=self._chunks,
            annotations=tail.annotations,
        )

    def _write(self, data: bytes) -> None:
        self._blob.write(data)
        self._blob_hash.update(data)
        self._blob_size_bytes += len(data)
