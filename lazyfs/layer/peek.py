"""The first bytes of an image without its first chunk.

A superblock lies 1 KiB into the image, but the chunk that holds it is megabytes. A zstd
frame can be decoded from its front, and the dm-verity tree proves single blocks: so a few
kilobytes give a proven superblock.
"""

import io
from dataclasses import dataclass

import zstandard

from lazyfs.errors import ImageFormatError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.metadata import LayerMetadata, VerityMetadata, fetch_hash_blocks
from lazyfs.model import ByteRange
from lazyfs.seekable.frames import MAX_WINDOW_BYTES

FRAME_BYTES = 160 << 10
"""As much of the first frame as its first zstd block (128 KiB of data) can take."""

IMAGE_BYTES = 64 << 10
"""As much of the image is decoded: the largest EROFS block."""


@dataclass(frozen=True, slots=True)
class ImageStart:
    """The beginning of an image."""

    data: bytes
    proven: bool
    """Whether a dm-verity tree vouches for it."""


async def fetch_start(metadata: LayerMetadata, source: BlobSource) -> ImageStart:
    """Fetch and decode the beginning of the image, at most ``IMAGE_BYTES`` of it.

    Raises:
        ImageFormatError: the frame cannot be decoded.
        VerificationError: the bytes do not match the dm-verity tree.
        SourceUnavailableError: they cannot be had.
    """
    if not len(metadata.table):
        return ImageStart(b"", proven=False)
    frame = metadata.table.frame(0)
    length = min(metadata.table.chunk(0).length, metadata.image_size_bytes, IMAGE_BYTES)
    if metadata.table.compressed:
        front = await source.fetch(ByteRange(frame.offset, min(frame.length, FRAME_BYTES)))
        data = _decode(front, length)
    else:
        data = await source.fetch(ByteRange(frame.offset, length))
    if metadata.verity is None:
        return ImageStart(data, proven=False)
    block = metadata.verity.params.data_block_size_bytes
    if len(data) < metadata.image_size_bytes:
        if len(data) < block:
            return ImageStart(data, proven=False)
        data = data[: len(data) - len(data) % block]
    await _prove(metadata, metadata.verity, data, source)
    return ImageStart(data, proven=True)


def _decode(front: bytes, length: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(io.BytesIO(front)) as reader:
            return reader.read(length)
    except zstandard.ZstdError as error:
        raise ImageFormatError(f"first chunk frame: {error}") from error


async def _prove(
    metadata: LayerMetadata, verity: VerityMetadata, data: bytes, source: BlobSource
) -> None:
    tree = verity.tree()
    count = -(-len(data) // verity.params.data_block_size_bytes)
    while missing := tree.missing(0, count):
        for where in missing:
            tree.add(where, await fetch_hash_blocks(metadata, where, source))
    tree.verify(0, data)
