"""One layer from a source to a destination: left alone, wrapped, or converted, then pushed."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import BinaryIO

import trio

from lazyfs.convert.below import Lookups
from lazyfs.convert.build import BuildOptions, BuiltImage, build_image
from lazyfs.convert.cutting import EarlyCut
from lazyfs.convert.documents import converted_layer
from lazyfs.convert.imagefiles import AlignedImage
from lazyfs.convert.images import Image, copy_image, open_temporary
from lazyfs.convert.ingest import read_layer
from lazyfs.convert.ledger import Ledger
from lazyfs.convert.lowerlayers import LayersBelow, LowerLayers
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.progress import Progress, ProgressTask
from lazyfs.convert.results import LayerOutcome, LayerResult, WrappedImage
from lazyfs.convert.sourcelayers import LayerKind, SourceLayer
from lazyfs.convert.tarstream import Readable
from lazyfs.convert.wrapping import BlobFiles, BlobMaker
from lazyfs.erofs.build.lower import LowerNames
from lazyfs.erofs.build.metadata import BLOCK_SIZE
from lazyfs.errors import UnsupportedFeatureError
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.metadata import fetch_metadata
from lazyfs.layer.source import RegistrySource
from lazyfs.model import ByteRange
from lazyfs.plan import LayerPlan
from lazyfs.seekable.mediatypes import LayerEncoding, Layout, is_erofs_layer, layout_of
from registry.interfaces import BlobReader, ImageDestination, ImageSource
from registry.manifest import Descriptor

OnProgress = Callable[[int], None]


class LayerConverter:
    """Converts layers of one source into one destination; several may run side by side."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        options: ConvertOptions,
        progress: Progress,
        ledger: Ledger | None = None,
    ) -> None:
        """Both ends must stay open; ``ledger`` knows former conversions."""
        self._source = source
        self._destination = destination
        self._options = options
        self._progress = progress
        self._ledger = ledger
        self._lower = LowerLayers(source, ledger)
        self._workers = trio.CapacityLimiter(options.jobs)
        self._turns: dict[SourceLayer, trio.Lock] = {}
        self._made: dict[SourceLayer, list[tuple[Lookups | None, LayerResult]]] = {}
        """What layers became here, and what was asked for it of the layers below."""

    def expect(self, layers: Sequence[SourceLayer]) -> None:
        """Say which layers will be converted, before the first one is."""
        self._lower.expect(layers)

    async def convert(
        self, layer: SourceLayer, below: Sequence[SourceLayer], label: str
    ) -> LayerResult:
        """Put the seekable form of ``layer`` into the destination.

        Args:
            layer: to convert.
            below: the layers that it lies on, topmost first, which were begun before it.
            label: for the progress.

        Raises:
            ConversionError, VerificationError, PlanError, RegistryError, OSError.

        Cancelled: temporary files are gone; the destination may keep a blob nobody names.
        """
        alone = layer.alone()
        async with self._turns.setdefault(alone, trio.Lock()):
            for lookups, result in self._made.get(alone, ()):
                if lookups is None or lookups.same_on(await self._lower.names(below)):
                    return result
            task = self._progress.begin(label)
            if layer.kind is LayerKind.DEVICE or await self._is_as_asked(layer):
                result = await self._keep(layer, task)
                self._made[alone] = [(None, result)]
            else:
                known = await self._find_known(layer)
                result = known or await self._rewrite(layer, below, task)
            self._lower.release(layer)
            task.finish()
            return result

    async def _find_known(self, layer: SourceLayer) -> LayerResult | None:
        """What the layer became in a former conversion, if the destination still has that."""
        if self._ledger is None:
            return None
        known = await trio.to_thread.run_sync(self._ledger.find, layer, self._options)
        if known is None:
            return None
        new = self._descriptor(layer, known)
        if not await self._destination.has_blob(new):
            return None
        return self._result(LayerOutcome.REUSED, layer, known)

    def _descriptor(self, layer: SourceLayer, made: WrappedImage) -> Descriptor:
        return converted_layer(
            layer.descriptor, self._options.layout, made.digest, made.size_bytes, made.annotations
        )

    def _result(self, outcome: LayerOutcome, layer: SourceLayer, made: WrappedImage) -> LayerResult:
        return LayerResult(
            outcome,
            source=layer.descriptor,
            descriptor=self._descriptor(layer, made),
            diff_id=made.diff_id,
            image_size_bytes=made.image_size_bytes,
            chunks=made.chunks,
            front=made.front,
        )

    async def _is_as_asked(self, layer: SourceLayer) -> bool:
        """Whether a layer is seekable already, in the layout and chunks that were asked for."""
        options = self._options
        if layer.kind is not LayerKind.EROFS or options.file_aligned:
            return False
        if layout_of(layer.descriptor.media_type) is not options.layout:
            return False
        plan = layer.plan()
        if plan.pointers is None or plan.pointers.table is None:
            return False
        if not options.rechunk:
            return True
        try:
            return await self._has_chunk_size(plan)
        except UnsupportedFeatureError:
            return False

    async def _has_chunk_size(self, plan: LayerPlan) -> bool:
        """Whether the longest chunk has the size that was asked for, if the image is that long."""
        if plan.pointers is None:
            raise AssertionError("only layers with a chunk table are asked about")
        counters = LayerCounters()
        blob = RegistrySource(await self._source.open_blob(plan.descriptor), counters)
        index = None
        if plan.index is not None:
            index = RegistrySource(await self._source.open_blob(plan.index), counters)
        metadata = await fetch_metadata(plan.pointers, blob, index)
        table, size = metadata.table, metadata.image_size_bytes
        longest = max((table.chunk(index).length for index in range(len(table))), default=0)
        return longest == min(self._options.chunk_size_bytes, max(longest, size))

    async def _rewrite(
        self, layer: SourceLayer, below: Sequence[SourceLayer], task: ProgressTask
    ) -> LayerResult:
        names: list[LowerNames] = []

        def on_names(found: LowerNames) -> None:
            names.append(found)
            trio.from_thread.run_sync(self._lower.provide, layer, found)

        with open_temporary() as spool, BlobFiles() as files:
            maker = BlobMaker(files, self._options, self._workers)
            image = await self._read(layer, below, spool, maker, on_names, task)
            lookups = image.statistics.lookups if isinstance(image, BuiltImage) else None
            task.stage("compressing", image.size_bytes)
            made = await maker.finish(image, task.advance)
            if isinstance(image, BuiltImage):
                made = replace(made, front=image.statistics.front)
            task.stage("pushing", made.size_bytes)
            await self._destination.push_blob(
                self._descriptor(layer, made), lambda: maker.pieces(task.advance)
            )
        if self._ledger is not None:
            keep = partial(
                self._ledger.keep, layer, self._options, made, depends_below=lookups is not None
            )
            await trio.to_thread.run_sync(keep)
            for found in names:
                await trio.to_thread.run_sync(self._ledger.keep_names, layer, found)
        tar = layer.kind is LayerKind.TAR
        outcome = LayerOutcome.CONVERTED if tar else LayerOutcome.WRAPPED
        result = self._result(outcome, layer, made)
        self._made.setdefault(layer.alone(), []).append((lookups, result))
        return result

    async def _read(
        self,
        layer: SourceLayer,
        below: Sequence[SourceLayer],
        spool: BinaryIO,
        maker: BlobMaker,
        on_names: Callable[[LowerNames], None],
        task: ProgressTask,
    ) -> Image:
        """Make the raw image of a layer, compressing what is certain of it meanwhile."""
        options, descriptor = self._options, layer.descriptor
        send, receive = trio.open_memory_channel[Sequence[ByteRange]](math.inf)

        def on_chunks(chunks: Sequence[ByteRange]) -> None:
            trio.from_thread.run_sync(send.send_nowait, chunks)

        spec = options.layout is Layout.EROFS_SPEC
        early = not (spec and options.verity_block_size_bytes > BLOCK_SIZE)
        build = partial(
            build_image,
            options=BuildOptions(
                chunk_size_bytes=options.chunk_size_bytes,
                free_chunks=spec,
                file_borders=options.file_aligned,
                lowest=layer.lowest,
                hot=layer.hot.ranges if layer.hot is not None else (),
            ),
            below=LayersBelow(self._lower, below),
            on_names=on_names,
            on_chunks=on_chunks if early else None,
        )

        def use(data: Readable) -> Image:
            if layer.kind is LayerKind.TAR:
                return build(data, spool)
            if options.file_aligned:
                return AlignedImage(copy_image(data, spool, layer.image_bytes()))
            cutter = EarlyCut(options.chunk_size_bytes)
            return copy_image(
                data, spool, layer.image_bytes(), lambda end: on_chunks(cutter.take(end))
            )

        task.stage("reading", descriptor.size_bytes)
        reader = await self._source.open_blob(descriptor)
        compressed = is_erofs_layer(descriptor.media_type) is not LayerEncoding.RAW
        async with trio.open_nursery() as nursery:
            nursery.start_soon(maker.begin, spool, receive)
            with send:
                return await read_layer(
                    reader, descriptor, layer.diff_id, task.advance, use, compressed=compressed
                )

    async def _keep(self, layer: SourceLayer, task: ProgressTask) -> LayerResult:
        blobs = (layer.descriptor,) if layer.index is None else (layer.descriptor, layer.index)
        task.stage("copying", sum(blob.size_bytes for blob in blobs))
        for blob in blobs:
            await copy_blob(self._source, self._destination, blob, task.advance)
        return LayerResult(
            LayerOutcome.KEPT,
            layer.descriptor,
            layer.descriptor,
            layer.diff_id,
            None,
            None,
            index=layer.index,
        )


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
