"""A blob that can only be decoded from its start: into a file, hashed on both sides."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import trio

from lazyfs.errors import ImageFormatError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.blocking import BlockingStream
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.decoding import Readable, decoding
from lazyfs.model import ByteRange
from lazyfs.seekable.mediatypes import LayerEncoding

MAX_CONTENT_BYTES = 1 << 40
"""Content that decodes to more is refused, so that a bomb ends somewhere."""

PIECE_BYTES = 1 << 20

PIECES_AHEAD = 8
"""Pieces of the blob that wait between network and decoder."""


class Streamed(NamedTuple):
    """What came; digests in lower-case hexadecimal."""

    blob_digest: str
    """By the algorithm that was asked for."""
    content_size_bytes: int
    content_sha256: str
    broken: ImageFormatError | None
    """Why the content ends early."""


class _Front:
    """The first bytes of a stream."""

    def __init__(self, stream: Readable, size_bytes: int) -> None:
        self._stream = stream
        self._missing_bytes = size_bytes

    def read(self, size_bytes: int, /) -> bytes:
        data = self._stream.read(min(size_bytes, self._missing_bytes))
        self._missing_bytes -= len(data)
        return data


async def decode_into(
    file: ContentFile,
    source: BlobSource,
    content_end: int,
    encoding: LayerEncoding,
    algorithm: str,
    on_progress: Callable[[int], None],
) -> Streamed:
    """Read a whole blob once, and write what it decodes to.

    Args:
        file: empty.
        source: the blob.
        content_end: where the encoded content ends in the blob, and other things may begin.
        encoding: of the blob.
        algorithm: of the blob's digest.
        on_progress: told of bytes of the blob, in a worker thread.

    Raises:
        SourceUnavailableError: the blob cannot be read.
        OSError: the disk is full.

    Cancelled: what was written so far stays in the file.
    """
    blob_hash = hashlib.new(algorithm)
    send, receive = trio.open_memory_channel[bytes](PIECES_AHEAD)

    async def pump() -> None:
        async with source.stream(ByteRange(0, source.size_bytes)) as pieces:
            async for piece in pieces:
                await send.send(piece)
        send.close()

    def see(piece: bytes) -> None:
        blob_hash.update(piece)
        on_progress(len(piece))

    def work() -> Streamed:
        stream = BlockingStream(receive, see)
        size, digest, broken = _decode(_Front(stream, content_end), encoding, file)
        while stream.read(PIECE_BYTES):  # what the decoder did not want is part of the blob
            pass
        file.resize(size)
        return Streamed(blob_hash.hexdigest(), size, digest, broken)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        return await trio.to_thread.run_sync(work)


def _decode(
    stream: Readable, encoding: LayerEncoding, file: ContentFile
) -> tuple[int, str, ImageFormatError | None]:
    """Size and SHA-256 of what could be decoded, and what stopped it."""
    content_hash = hashlib.sha256()
    size = 0
    try:
        with decoding(stream, encoding) as reader:
            while data := reader.read(PIECE_BYTES):
                if size + len(data) > MAX_CONTENT_BYTES:
                    raise ImageFormatError(f"decodes to more than {MAX_CONTENT_BYTES} bytes")
                content_hash.update(data)
                file.write(size, data)
                size += len(data)
    except ImageFormatError as error:
        return size, content_hash.hexdigest(), error
    return size, content_hash.hexdigest(), None
