"""One layer from a source to a destination: left alone, wrapped, or converted, then pushed."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import BinaryIO

import trio

from lazyfs.convert.documents import converted_layer, is_seekable
from lazyfs.convert.ingest import ingest, open_temporary
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.progress import Progress
from lazyfs.convert.results import LayerOutcome, LayerResult
from lazyfs.convert.wrapping import wrap_image
from lazyfs.seekable.mediatypes import is_erofs_layer
from registry.digest import Digest
from registry.interfaces import BlobReader, ImageDestination, ImageSource
from registry.manifest import Descriptor

PIECE_BYTES = 1 << 20

OnProgress = Callable[[int], None]


class LayerConverter:
    """Converts layers of one source into one destination; several may run side by side."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        options: ConvertOptions,
        progress: Progress,
    ) -> None:
        """Both ends must stay open."""
        self._source = source
        self._destination = destination
        self._options = options
        self._progress = progress
        self._workers = trio.CapacityLimiter(options.jobs)

    async def convert(self, layer: Descriptor, diff_id: Digest, label: str) -> LayerResult:
        """Put the seekable form of ``layer`` into the destination.

        Raises:
            ConversionError, VerificationError, PlanError, RegistryError, OSError.

        Cancelled: temporary files are gone; the destination may keep a blob nobody names.
        """
        if is_seekable(layer):
            return await self._keep(layer, diff_id, label)
        task = self._progress.begin(label)
        task.stage("reading", layer.size_bytes)
        reader = await self._source.open_blob(layer)
        with open_temporary() as file:
            chunk_size_bytes = self._options.chunk_size_bytes
            image = await ingest(reader, layer, diff_id, task.advance, chunk_size_bytes)
            with closing(image):
                task.stage("compressing", image.size_bytes)
                wrapped = await wrap_image(image, file, self._options, self._workers, task.advance)
            descriptor = converted_layer(
                layer, wrapped.digest, wrapped.size_bytes, wrapped.annotations
            )
            task.stage("pushing", wrapped.size_bytes)
            await self._destination.push_blob(
                descriptor, lambda: _file_pieces(file, wrapped.size_bytes, task.advance)
            )
        tar = is_erofs_layer(layer.media_type) is None
        result = LayerResult(
            LayerOutcome.CONVERTED if tar else LayerOutcome.WRAPPED,
            source=layer,
            descriptor=descriptor,
            diff_id=wrapped.diff_id,
            image_size_bytes=wrapped.image_size_bytes,
            chunks=wrapped.chunks,
        )
        task.finish()
        return result

    async def _keep(self, layer: Descriptor, diff_id: Digest, label: str) -> LayerResult:
        task = self._progress.begin(label)
        task.stage("copying", layer.size_bytes)
        await copy_blob(self._source, self._destination, layer, task.advance)
        task.finish()
        return LayerResult(LayerOutcome.KEPT, layer, layer, diff_id, None, None)


async def copy_blob(
    source: ImageSource,
    destination: ImageDestination,
    descriptor: Descriptor,
    on_progress: OnProgress,
) -> None:
    """Bring a blob over as it is, moving its bytes only if need be.

    Raises:
        RegistryError: it cannot be read or written, or is not what the descriptor says.
    """
    if await destination.has_blob(descriptor) or await destination.mount_blob(descriptor, source):
        return
    reader = await source.open_blob(descriptor)
    await destination.push_blob(descriptor, lambda: _blob_pieces(reader, on_progress))


async def push_bytes(destination: ImageDestination, descriptor: Descriptor, raw: bytes) -> None:
    """Push a small blob that is at hand.

    Raises:
        RegistryError: it cannot be written.
    """

    async def whole() -> AsyncIterator[bytes]:
        yield raw

    await destination.push_blob(descriptor, whole)


async def _blob_pieces(reader: BlobReader, on_progress: OnProgress) -> AsyncIterator[bytes]:
    async with reader.stream(0, reader.size_bytes) as pieces:
        async for piece in pieces:
            on_progress(len(piece))
            yield piece


async def _file_pieces(
    file: BinaryIO, size_bytes: int, on_progress: OnProgress
) -> AsyncIterator[bytes]:
    offset = 0
    while offset < size_bytes:
        length = min(PIECE_BYTES, size_bytes - offset)
        piece = await trio.to_thread.run_sync(os.pread, file.fileno(), length, offset)
        if not piece:
            raise OSError(f"temporary blob ends at {offset}")
        offset += len(piece)
        on_progress(len(piece))
        yield piece
