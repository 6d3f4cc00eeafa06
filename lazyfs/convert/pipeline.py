"""A whole conversion: look at everything, convert layers side by side, push documents last.

Order of writes: blobs, configurations, manifests by digest, then the name. So the destination
never has a name for something incomplete, and a failure leaves no new name at all.
"""

from collections.abc import Mapping, Sequence

import trio

from lazyfs.convert.documents import (
    converted_entry,
    converted_index,
    converted_manifest,
    reference_of,
    with_reference,
)
from lazyfs.convert.layers import LayerConverter, copy_blob, push_bytes
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.progress import Progress
from lazyfs.convert.results import ConversionResult, ImageResult, LayerResult
from lazyfs.convert.survey import CarriedManifest, SourceImage, survey_source
from registry.digest import Digest
from registry.interfaces import ImageDestination, ImageSource
from registry.manifest import Descriptor, Index, describe

LAYERS_AT_ONCE = 4
"""Layers in flight: each has its temporary files and its connections."""

LayerKey = tuple[Descriptor, Digest]
"""A layer and its diff ID: converted once, however many images have it."""


async def convert_image(
    source: ImageSource,
    destination: ImageDestination,
    options: ConvertOptions,
    progress: Progress,
) -> ConversionResult:
    """Convert what ``source`` names into ``destination``.

    The same source and options give the same digests (with the same release of libzstd).

    Raises:
        ConversionError, VerificationError, PlanError, RegistryError, OSError: the first of
            them, where several layers failed.

    Cancelled: temporary files are gone, and the destination has no new name.
    """
    try:
        return await _convert(source, destination, options, progress)
    except BaseExceptionGroup as group:
        raise _first_failure(group) from None


def _first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a person is to be told of several failures; an interrupt goes before all."""
    for wanted in (KeyboardInterrupt, Exception):
        found = group.subgroup(wanted)
        if found is not None:
            leaf: BaseException = found
            while isinstance(leaf, BaseExceptionGroup):
                leaf = leaf.exceptions[0]
            return leaf
    return group


async def _convert(
    source: ImageSource,
    destination: ImageDestination,
    options: ConvertOptions,
    progress: Progress,
) -> ConversionResult:
    survey = await survey_source(source, options.platforms)
    converter = LayerConverter(source, destination, options, progress)
    layers = await _convert_layers(survey.images, converter)
    pusher = _DocumentPusher(source, destination, layers, progress)
    pushed = [await pusher.push_image(image) for image in survey.images]
    notes = list(survey.notes)
    if survey.index is None:
        result, raw = pushed[0]
        descriptor = result.descriptor
        await destination.tag(descriptor, raw)
    else:
        moved = {result.source: result.descriptor.digest for result, _ in pushed}
        manifests = iter(pushed)
        entries: list[Descriptor] = []
        for entry in survey.entries:
            if isinstance(entry, SourceImage):
                _, raw = next(manifests)
                entries.append(converted_entry(entry.entry, raw, entry.config.platform))
            else:
                carried, note = await pusher.carry(entry, moved)
                entries += [carried] if carried is not None else []
                notes.append(note)
        descriptor = await _name_index(converted_index(survey.index, entries), destination)
    images = tuple(result for result, _ in pushed)
    return ConversionResult(source.name, destination.name, descriptor, images, tuple(notes))


async def _name_index(index: Index, destination: ImageDestination) -> Descriptor:
    raw = index.encode()
    descriptor = describe(raw, index.media_type)
    await destination.tag(descriptor, raw)
    return descriptor


async def _convert_layers(
    images: Sequence[SourceImage], converter: LayerConverter
) -> dict[LayerKey, LayerResult]:
    """Convert every layer once, several side by side."""
    wanted: list[LayerKey] = list(
        dict.fromkeys(
            key
            for image in images
            for key in zip(image.manifest.layers, image.config.diff_ids, strict=True)
        )
    )
    results: dict[LayerKey, LayerResult] = {}
    room = trio.Semaphore(LAYERS_AT_ONCE)

    async def convert_one(key: LayerKey, label: str) -> None:
        try:
            results[key] = await converter.convert(*key, label)
        finally:
            room.release()

    async with trio.open_nursery() as nursery:
        for number, key in enumerate(wanted, 1):
            await room.acquire()
            label = f"layer {number}/{len(wanted)} {key[0].digest.encoded[:12]}"
            nursery.start_soon(convert_one, key, label)
    return results


class _DocumentPusher:
    """Writes configurations and manifests whose layers are all there."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        layers: Mapping[LayerKey, LayerResult],
        progress: Progress,
    ) -> None:
        self._source = source
        self._destination = destination
        self._layers = layers
        self._progress = progress

    async def push_image(self, image: SourceImage) -> tuple[ImageResult, bytes]:
        """Push the configuration and manifest of a converted image."""
        keys = zip(image.manifest.layers, image.config.diff_ids, strict=True)
        layers = tuple(self._layers[key] for key in keys)
        config = image.config.converted([layer.diff_id for layer in layers])
        manifest = converted_manifest(
            image.manifest, config, [layer.descriptor for layer in layers]
        )
        raw = manifest.encode()
        descriptor = describe(raw, manifest.media_type)
        await push_bytes(self._destination, manifest.config, config)
        await self._destination.push_manifest(raw, descriptor)
        platform = image.entry.platform or image.config.platform
        return ImageResult(str(platform), image.entry.digest, descriptor, layers), raw

    async def carry(
        self, carried: CarriedManifest, moved: Mapping[Digest, Digest]
    ) -> tuple[Descriptor | None, str]:
        """Copy what is no image; the new index entry, if it still has a place, and a note."""
        entry, manifest = carried.entry, carried.manifest
        reference = reference_of(entry)
        if reference is not None and reference not in moved:
            return None, f"left out: {entry.digest}, which speaks of an image that is left out"
        blobs = (manifest.config, *manifest.layers)
        task = self._progress.begin(f"manifest {entry.digest.encoded[:12]}")
        task.stage("copying", sum(blob.size_bytes for blob in blobs))
        for blob in blobs:
            await copy_blob(self._source, self._destination, blob, task.advance)
        await self._destination.push_manifest(carried.raw, entry)
        task.finish()
        if reference is None:
            return entry, f"carried along unchanged: {entry.digest}"
        return with_reference(entry, moved[reference]), (
            f"carried along unchanged: {entry.digest}, an attestation; inside, it still names "
            "the image before conversion"
        )
