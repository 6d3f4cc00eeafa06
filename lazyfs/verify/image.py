"""An image in a registry, a layout folder or an archive: its documents and all its layers."""

from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import TypeAlias

import trio

from lazyfs.convert.documents import CONFIG_LIMIT_BYTES, decode_config
from lazyfs.convert.progress import Progress
from lazyfs.errors import (
    LazyfsError,
    PlanError,
    SourceUnavailableError,
    innermost,
)
from lazyfs.layer.budget import ByteBudget
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.limits import Limits
from lazyfs.layer.source import RegistrySource
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerPlan, plan_layer, plan_layers
from lazyfs.resolve import ResolvedImage, resolve_image
from lazyfs.seekable.mediatypes import is_erofs_layer
from lazyfs.verify.blob import BlobCheck, BlobJob, check_digest
from lazyfs.verify.content import Content
from lazyfs.verify.findings import Kind, LayerReport, Report
from lazyfs.verify.structure import check_structure
from registry.digest import Digest
from registry.errors import ContentError, RegistryError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor, Manifest

IMAGES_AT_ONCE = 2
"""EROFS images that are checked side by side; each has its content in a temporary file."""

MEMORY_BYTES = 32 << 20
"""Stored bytes and chunks in memory; a single chunk may be larger."""

Contents: TypeAlias = dict[int, Content | None]
"""By the number of the layer; None: it could not be had."""


async def verify_image(
    source: ImageSource, platform: str | None, jobs: int, progress: Progress
) -> Report:
    """Check all of an image.

    Args:
        source: the image.
        platform: which one of an index; None: this machine's.
        jobs: threads.
        progress: shows each layer.

    Raises:
        PlanError: it is no image of EROFS layers.
        SourceUnavailableError: not even its manifest can be had.
        OSError: the disk is full.
    """
    report = Report(source.name)
    resolved = await resolve(source, platform, report)
    if resolved is None:
        return report
    layers = resolved.manifest.layers
    diff_ids = await _diff_ids(source, resolved.manifest, report)
    report.layers = [
        LayerReport(number, str(layer.digest)) for number, layer in enumerate(layers, 1)
    ]
    limits = Limits(
        workers=trio.CapacityLimiter(jobs),
        requests=trio.CapacityLimiter(IMAGES_AT_ONCE),
        budget=ByteBudget(MEMORY_BYTES),
    )
    await _ImageCheck(source, layers, diff_ids, report, limits, progress).run()
    return report


async def resolve(
    source: ImageSource, platform: str | None, report: Report
) -> ResolvedImage | None:
    """Get the manifest; None, with a finding, if a document on the way to it is broken.

    Raises:
        PlanError, SourceUnavailableError: there is no such image, or it cannot be reached.
    """
    try:
        resolved = await resolve_image(source, platform)
    except SourceUnavailableError as error:
        if not isinstance(error.__cause__, ContentError):
            raise
        report.findings.add(Kind.MANIFEST, error)
        return None
    report.digest = str(resolved.descriptor.digest)
    return resolved


async def _diff_ids(
    source: ImageSource, manifest: Manifest, report: Report
) -> Sequence[Digest | None]:
    """The diff ID of each layer, as far as there are any."""
    with report.findings.take(Kind.CONFIG, digest=str(manifest.config.digest)):
        raw = await source.fetch_content(manifest.config, CONFIG_LIMIT_BYTES)
        return decode_config(raw, len(manifest.layers)).diff_ids
    return [None] * len(manifest.layers)


class _ImageCheck:
    """The check of all layers."""

    def __init__(
        self,
        source: ImageSource,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[Digest | None],
        report: Report,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._source = source
        self._layers = layers
        self._diff_ids = diff_ids
        self._report = report
        self._limits = limits
        self._progress = progress

    async def run(self) -> None:
        """Check image by image, each with the blobs that belong to it; then what is left."""
        plans = self._plans()
        waiting = iter(plans)

        async def some() -> None:
            for plan in waiting:
                with ExitStack() as files:
                    await self._check_image(plan, files)

        async with trio.open_nursery() as nursery:
            for _ in range(IMAGES_AT_ONCE):
                nursery.start_soon(some)
        planned = {self._number(part) for plan in plans for part in parts_of(plan)}
        for number, layer in enumerate(self._layers, 1):
            if number not in planned:
                report = self._report.layers[number - 1]
                with report.findings.take(Kind.BLOB):
                    await check_digest(report, layer, await self._open(layer))

    def _plans(self) -> Sequence[LayerPlan]:
        """How to read the layers; each for itself if they do not make an image."""
        layers = self._layers
        try:
            return plan_layers(layers, VerifyMode.ALWAYS)
        except PlanError as error:
            if not any(_looks_like_erofs(layer) for layer in layers):
                raise
            self._report.findings.add(Kind.PLAN, error)
        plans = []
        for number, layer in enumerate(layers, 1):
            following = layers[number] if number < len(layers) else None
            with self._report.layers[number - 1].findings.take(Kind.PLAN):
                plan = plan_layer(f"layer {number}", layer, following, VerifyMode.ALWAYS)
                plans.append(plan)
        return plans

    async def _check_image(self, plan: LayerPlan, files: ExitStack) -> None:
        """Check the blobs of an EROFS image, then the images that they hold."""
        contents: Contents = {}
        for part in parts_of(plan):
            number = self._number(part)
            if number not in contents:
                contents[number] = await self._check_blob(number, part, files)
        spare = [contents[self._number(device)] for device in plan.devices]
        for image in (*plan.data, plan):
            number = self._number(image)
            report = self._report.layers[number - 1]
            devices = [contents[number], *spare]
            there = [device for device in devices if device is not None]
            if len(there) < len(devices):
                report.notes.append("the EROFS image was not checked: it, or a device, is lost")
                continue
            used = await trio.to_thread.run_sync(
                check_structure, there, report.findings, report.counts
            )
            spare = spare[used:]

    async def _check_blob(self, number: int, plan: LayerPlan, files: ExitStack) -> Content | None:
        report = self._report.layers[number - 1]
        task = self._progress.begin(f"layer {number}/{len(self._layers)}")
        file = files.enter_context(TemporaryFile(prefix="lazyfs-verify-"))  # noqa: SIM115 - it is one
        job = BlobJob(plan, self._diff_ids[number - 1], report)
        content = None
        try:
            blob = await self._open(plan.descriptor)
            index = None if plan.index is None else await self._open(plan.index)
            spool = ContentFile(file.fileno(), "temporary file")
            content = await BlobCheck(job, blob, index, spool, self._limits, task).run()
        except Exception as error:
            failure = innermost(error)
            if not isinstance(failure, (LazyfsError, RegistryError)):
                raise
            report.findings.add(Kind.BLOB, failure)
        task.finish()
        return content

    async def _open(self, descriptor: Descriptor) -> RegistrySource:
        return RegistrySource(await self._source.open_blob(descriptor), LayerCounters())

    def _number(self, plan: LayerPlan) -> int:
        """The number of a plan's layer; there may be several of the same content."""
        for number, layer in enumerate(self._layers, 1):
            if layer is plan.descriptor:
                return number
        raise AssertionError("a plan of no layer")


def parts_of(plan: LayerPlan) -> list[LayerPlan]:
    """The plan and all that belong to it."""
    return [*plan.devices, *plan.data, plan]


def _looks_like_erofs(layer: Descriptor) -> bool:
    try:
        return is_erofs_layer(layer.media_type) is not None
    except PlanError:
        return True
