"""A whole conversion: look at everything, convert layers side by side, push documents last.

Order of writes: blobs, configurations, manifests by digest, then the name, then profiles beside
it. So the destination never has a name for something incomplete, and a failure leaves no new name
at all, or a complete image without its profile.
"""

from collections.abc import Sequence

import trio

from lazyfs.convert.layers import LayerConverter
from lazyfs.convert.ledger import Ledger
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.progress import Progress
from lazyfs.convert.pushing import DocumentPusher
from lazyfs.convert.results import ConversionResult, ImageResult, LayerResult
from lazyfs.convert.sourcelayers import SourceLayer
from lazyfs.convert.survey import SourceImage, survey_source
from lazyfs.pushedprofile import push_profile, time_of_push
from registry.interfaces import ImageDestination, ImageSource, ReferrerDestination

LAYERS_AT_ONCE = 4
"""Layers in flight: each has its temporary files and its connections."""


async def convert_image(
    source: ImageSource,
    destination: ImageDestination,
    options: ConvertOptions,
    progress: Progress,
    ledger: Ledger | None = None,
) -> ConversionResult:
    """Convert what ``source`` names into ``destination``.

    The same source and options give the same digests (with the same release of libzstd). Layers
    that ``ledger`` knows and the destination has are not converted again.

    Raises:
        ConversionError, VerificationError, PlanError, RegistryError, OSError: the first of
            them, where several layers failed.

    Cancelled: temporary files are gone, and the destination has no new name.
    """
    try:
        return await _convert(source, destination, options, progress, ledger)
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
    ledger: Ledger | None,
) -> ConversionResult:
    survey = await survey_source(source, options)
    converter = LayerConverter(source, destination, options, progress, ledger)
    layers = await _convert_layers(survey.images, converter)
    pusher = DocumentPusher(source, destination, options.layout, layers, progress, options.profile)
    for image in survey.images:
        await pusher.push_image(image)
    for carried in survey.carried:
        await pusher.carry(carried)
    descriptor, raw = await pusher.finish(survey.top)
    await destination.tag(descriptor, raw)
    notes = (*survey.notes, *pusher.notes, *await _push_profiles(pusher.images, destination))
    return ConversionResult(source.name, destination.name, descriptor, pusher.images, notes)


async def _push_profiles(
    images: Sequence[ImageResult], destination: ImageDestination
) -> Sequence[str]:
    """Put profiles beside their images, where mounts find them; what a person should know."""
    found = [(image.profile, image.descriptor) for image in images if image.profile is not None]
    if found and not isinstance(destination, ReferrerDestination):
        return ("an archive has no place for the image's profile: --profile-out writes it",)
    for profile, descriptor in found:
        await push_profile(destination, profile, descriptor, time_of_push())
    return ()


async def _convert_layers(
    images: Sequence[SourceImage], converter: LayerConverter
) -> dict[SourceLayer, LayerResult]:
    """Convert every layer once, several side by side."""
    wanted: dict[SourceLayer, Sequence[SourceLayer]] = {}
    for image in images:
        for number, layer in enumerate(image.layers):
            wanted.setdefault(layer, image.layers[:number][::-1])
    converter.expect([*wanted])
    results: dict[SourceLayer, LayerResult] = {}
    room = trio.Semaphore(LAYERS_AT_ONCE)

    async def convert_one(layer: SourceLayer, below: Sequence[SourceLayer], label: str) -> None:
        try:
            results[layer] = await converter.convert(layer, below, label)
        finally:
            room.release()

    async with trio.open_nursery() as nursery:
        for number, (layer, below) in enumerate(wanted.items(), 1):
            await room.acquire()
            label = f"layer {number}/{len(wanted)} {layer.descriptor.digest.encoded[:12]}"
            nursery.start_soon(convert_one, layer, below, label)
    return results
