"""All layers of an image, side by side."""

from collections.abc import Sequence
from pathlib import Path

import trio

from lazyfs.convert.documents import CONFIG_LIMIT_BYTES, decode_config
from lazyfs.convert.progress import Progress
from lazyfs.errors import LazyfsError, SourceUnavailableError, UnpackError, innermost
from lazyfs.layer.budget import ByteBudget
from lazyfs.layer.limits import Limits
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerPlan, plan_layer, plan_layers
from lazyfs.resolve import resolve_image
from lazyfs.seekable.mediatypes import CHUNK_INDEX_LAYER, LayerEncoding, is_erofs_layer
from lazyfs.unpack.folder import DEVICE_NAME, IMAGE_NAME
from lazyfs.unpack.layer import LayerJob, unpack_layer
from lazyfs.unpack.options import TreeChoice, UnpackOptions
from lazyfs.unpack.results import LayerResult, UnpackResult
from registry.digest import Digest
from registry.errors import RegistryError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor

LAYERS_AT_ONCE = 4
REQUESTS_AT_ONCE = 4
MEMORY_BYTES = 32 << 20
"""Stored bytes and chunks in memory; a single chunk may be larger."""


async def unpack_image(
    source: ImageSource, folder: Path, options: UnpackOptions, progress: Progress
) -> UnpackResult:
    """Unpack an image into ``folder``, each layer into ``<number>-<digest>/`` in it.

    Raises:
        LazyfsError: of the kind that happened, naming the layer.
        OSError: the disk is full, or ``folder`` cannot be written.

    Cancelled: what is done stays for the next run.
    """
    try:
        resolved = await resolve_image(source, options.platform)
        raw = await source.fetch_content(resolved.manifest.config, CONFIG_LIMIT_BYTES)
        diff_ids = decode_config(raw, len(resolved.manifest.layers)).diff_ids
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error
    jobs = _jobs(resolved.manifest.layers, diff_ids, folder, options)
    results = await _unpack_all(source, jobs, options, progress)
    return UnpackResult(source.name, resolved.descriptor.digest, results)


def _jobs(
    layers: Sequence[Descriptor],
    diff_ids: Sequence[Digest | None],
    folder: Path,
    options: UnpackOptions,
) -> list[LayerJob]:
    """What is to be done for each layer, chunk indexes left out."""
    plan_layers(layers, VerifyMode.ALWAYS)  # refuses what cannot be mounted
    for number in options.layers:
        if not 1 <= number <= len(layers):
            raise UnpackError(f"there is no layer {number}: the image has {len(layers)}")
    width = len(str(len(layers)))
    jobs = []
    for number, layer in enumerate(layers, 1):
        if layer.media_type == CHUNK_INDEX_LAYER or number not in (options.layers or [number]):
            continue
        following = layers[number] if number < len(layers) else None
        plan = plan_layer(f"layer {number}", layer, following, VerifyMode.ALWAYS)
        is_image = is_erofs_layer(layer.media_type) is not None
        jobs.append(
            LayerJob(
                number=number,
                plan=plan,
                digests=_content_digests(plan, diff_ids[number - 1]),
                path=folder / f"{number:0{width}}-{layer.digest.encoded[:12]}",
                file_name=IMAGE_NAME if is_image else DEVICE_NAME,
                tree=options.tree if is_image else TreeChoice.NONE,
            )
        )
    return jobs


def _content_digests(plan: LayerPlan, diff_id: Digest | None) -> tuple[Digest, ...]:
    """What the content of a layer must have, as far as the documents say and SHA-256 goes."""
    plain = plan.encoding is LayerEncoding.RAW and plan.pointers is None
    digests = {diff_id, plan.diff_id, plan.descriptor.digest if plain else None} - {None}
    return tuple(digest for digest in digests if digest and digest.algorithm == "sha256")


async def _unpack_all(
    source: ImageSource, jobs: Sequence[LayerJob], options: UnpackOptions, progress: Progress
) -> tuple[LayerResult, ...]:
    limits = Limits(
        workers=trio.CapacityLimiter(options.jobs),
        requests=trio.CapacityLimiter(REQUESTS_AT_ONCE),
        budget=ByteBudget(MEMORY_BYTES),
    )
    results: dict[int, LayerResult] = {}
    waiting = iter(jobs)

    async def some() -> None:
        for job in waiting:
            task = progress.begin(f"layer {job.number}/{jobs[-1].number}")
            try:
                results[job.number] = await unpack_layer(source, job, limits, task)
            except Exception as error:
                digest = job.plan.descriptor.digest
                name = f"layer {job.number} ({digest.algorithm}:{digest.encoded[:12]})"
                failure = innermost(error)
                if isinstance(failure, RegistryError):
                    raise SourceUnavailableError(f"{name}: {failure}") from error
                if isinstance(failure, LazyfsError):
                    raise type(failure)(f"{name}: {failure}") from error
                raise

    async with trio.open_nursery() as nursery:
        for _ in range(LAYERS_AT_ONCE):
            nursery.start_soon(some)
    return tuple(results[job.number] for job in jobs)
