"""Builds the graph of objects behind a mount, and owns the tasks that fetch for it.

MergedTree( ErofsLayer( VerityLayer( PieceFetcher(RegistrySource), HashPieces ) ), ... )
"""

import itertools
import logging
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from cache.documents import DocumentFolder
from cache.errors import CacheError
from cache.memo import Memo
from cache.memory import MemoryStore
from cache.steady import SteadyStore
from lazyfs.documents import FOLDER_NAME, Documents, KeptSource, KeptSpans
from lazyfs.errors import (
    ImageFormatError,
    LazyfsError,
    MountError,
    PlanError,
    SourceUnavailableError,
    VerificationError,
)
from lazyfs.image.erofs_layer import ErofsLayer, InodeMemory
from lazyfs.image.layers import LayersTree
from lazyfs.image.merged import MergedTree
from lazyfs.image.nodes import MAX_LAYER
from lazyfs.image.redirects import RedirectingLayer
from lazyfs.image.single import SingleTree
from lazyfs.interfaces import ImageTree
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.engine import Engine
from lazyfs.layer.failures import FailureMemory
from lazyfs.layer.guess import Guesser
from lazyfs.layer.local import LocalFile
from lazyfs.layer.open import LayerContext, open_layer
from lazyfs.layer.opening import OpeningSource, beginning
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.source import RegistrySource
from lazyfs.layer.together import all_of
from lazyfs.localname import parse_local_image
from lazyfs.mount.explain import Explainer
from lazyfs.mount.figures import Figures
from lazyfs.mount.libraries import Libraries
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import MountOptions
from lazyfs.mount.report import ImageReport, LayerReport, LocalReport, reads_document
from lazyfs.mount.startup import Startup
from lazyfs.plan import MAX_LAYERS, LayerPlan, plan_layers
from lazyfs.profile.recording import Recording
from lazyfs.resolve import ResolvedImage, resolve_image, resolve_pinned
from lazyfs.store.layers import LayerFiles
from registry.errors import RegistryError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor
from registry.transports import open_source

REQUESTS_AT_ONCE = 40
"""Range requests under way for one mount; each layer has a limit of its own below that
(``lazyfs.layer.fetcher.REQUESTS_PER_LAYER``)."""

WORKER_THREADS = 2
"""Threads that hash and decompress arriving chunks; more than two brought nothing."""

DERIVED_BYTES = 24 << 20
"""Decompressed pclusters kept in memory."""

log = logging.getLogger(__name__)

assert MAX_LAYERS <= MAX_LAYER  # noqa: S101 - relation of constants


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image ready to be served."""

    tree: ImageTree
    layer_files: LayerFiles
    report: ImageReport | LocalReport
    explainer: Explainer
    recording: Recording | None = None

    @property
    def pin(self) -> str:
        """Names exactly this image."""
        return self.report.pin()

    async def status(self) -> dict[str, object]:
        """What ``lazyfs status`` shows."""
        return await self.report.document()

    def figures(self) -> Figures:
        """What metrics are made of."""
        return self.report.figures()

    async def explain(self, path: bytes) -> dict[str, object]:
        """What ``lazyfs explain`` shows."""
        return await self.explainer.explain(path)

    async def reads(self) -> dict[str, object]:
        """Which blocks were read, for ``lazyfs profile``."""
        await trio.lowlevel.checkpoint()
        if self.recording is None or isinstance(self.report, LocalReport):
            return {"problem": "only what is read of images with a manifest is recorded"}
        return reads_document(self.report, self.recording)


@asynccontextmanager
async def open_image(
    name: str, options: MountOptions, source: ImageSource | None = None
) -> AsyncIterator[MountedImage]:
    """Open an image for a mount; what it fetches in the background ends with the block.

    Args:
        name: of the image.
        options: of the mount.
        source: has it, if that was opened before.

    Raises:
        LazyfsError: it cannot be mounted, and why.
    """
    local = parse_local_image(name)
    if local is not None:
        async with _open_local(name, local, in_directories=options.layers) as opened:
            if options.pin not in (None, opened.pin):
                raise MountError(f"{name} has been changed or replaced since it was mounted")
            yield opened
        return
    try:
        async with (
            open_chunk_store(options) as (store, documents),
            nullcontext(source) if source else open_source(name, options.access()) as remote,
            background() as nursery,
        ):
            nursery.start_soon(store.tend)
            kept = KeptSource(remote, documents)
            with trio.fail_after(options.timeout_s or math.inf):
                if options.pin is None:
                    resolved = await resolve_image(kept, options.platform)
                else:
                    resolved = await resolve_pinned(kept, options.pin)
            plans = plan_layers(resolved.manifest.layers, options.verify)
            engine = Engine(
                nursery=nursery,
                store=store,
                flights=store.flights,
                timeout_s=options.timeout_s,
                requests=trio.CapacityLimiter(REQUESTS_AT_ONCE),
                workers=trio.CapacityLimiter(WORKER_THREADS),
                notes=documents,
            )
            if options.prefetch != "none":
                engine.guesser = Guesser(nursery, store, store.flights, engine.turns)
            opened = await _open_layers(kept, resolved, plans, engine, options, documents)
            await documents.trim()
            yield opened
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error
    except trio.TooSlowError as error:
        raise SourceUnavailableError(
            f"{name}: no answer within {options.timeout_s:g} s (--timeout sets this)"
        ) from error


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks end with the block, and whose block's error stays single."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def open_chunk_store(options: MountOptions) -> AsyncIterator[tuple[SteadyStore, Documents]]:
    """The store that the layers share, and what mounting again needs."""
    with (
        await SteadyStore.open(
            options.cache_dir, options.cache_size_bytes, options.cache_min_free
        ) as store,
        ExitStack() as stack,
    ):
        documents = None
        if store.problem is None:
            try:
                documents = stack.enter_context(DocumentFolder.open(options.cache_dir, FOLDER_NAME))
            except CacheError as error:
                log.warning("a restart may need the registry: %s", error)
        yield store, Documents(documents)


async def _open_layers(
    source: KeptSource,
    resolved: ResolvedImage,
    plans: Sequence[LayerPlan],
    engine: Engine,
    options: MountOptions,
    documents: Documents,
) -> OpenedImage:
    startup = Startup(source, documents, resolved, options, engine.guesser)
    engine.nursery.start_soon(startup.run)
    recording = Recording()
    opener = LayerOpener(
        source,
        resolved.name,
        engine,
        options,
        documents,
        recording=recording,
        together=len(plans),
    )
    layers = await all_of([partial(opener.open, *item) for item in enumerate(plans, 1)])
    opener.forget_beginnings()
    reports = opener.ordered_reports()
    startup.opened(reports)
    directories = len(layers) if options.layers else 0
    report = ImageReport(
        source, resolved, reports, engine.store, options, engine.failures, startup, directories
    )
    # A single layer is a file system of its own: as when the kernel mounts it, it shows its
    # whiteouts and overlay attributes, which would hide something only in a stack.
    tree: SingleTree | MergedTree | LayersTree
    if options.layers:
        tree = LayersTree(layers)
    else:
        tree = SingleTree(layers[0]) if len(layers) == 1 else MergedTree(layers)
    if engine.guesser is not None:
        readers = [report.opened.reader for report in reports]
        Libraries(tree, layers, readers, engine.guesser, engine.nursery)
    explainer = Explainer(tree, layers, reports, engine.store, engine.failures)
    return OpenedImage(tree, opener.layer_files(), report, explainer, recording)


@dataclass(frozen=True, slots=True)
class Shared:
    """What the layers of one mount have in common, of however many images they are."""

    pages: PageMemory = field(default_factory=PageMemory)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    """Of layers, as ``pages`` knows them."""


class LayerOpener:
    """Opens the layers of one image, and the blobs that belong to them."""

    def __init__(
        self,
        source: ImageSource,
        name: str,
        engine: Engine,
        options: MountOptions,
        documents: Documents,
        shared: Shared | None = None,
        recording: Recording | None = None,
        together: int = 0,
    ) -> None:
        """Open layers of the image ``name`` in ``source``.

        Args:
            source: has the image.
            name: of the image.
            engine: fetches.
            options: of the mount.
            documents: what was kept of earlier mounts.
            shared: with other images.
            recording: is to note what is read.
            together: how many layers are opened at once, so that their beginnings are wanted
                too; 0: they come when they come.
        """
        shared = shared or Shared()
        self._recording = recording
        self._source = source
        self._documents = documents
        self._name = name
        self._engine = engine
        self._options = options
        self._pages = shared.pages
        self._derived = Memo(DERIVED_BYTES)
        self._inodes = InodeMemory()
        self._numbers = shared.numbers
        self._together = together
        self._beginnings: list[OpeningSource] = []
        self._reports: list[tuple[int, LayerReport]] = []
        self._files: dict[int, list[PagedReader]] = {}
        """By position: the layer's image, then its devices."""
        self._obstacle: str | None = None

    def ordered_reports(self) -> tuple[LayerReport, ...]:
        """What was opened, bottom layer first, each layer behind what belongs to it."""
        return tuple(report for _, report in sorted(self._reports, key=lambda item: item[0]))

    def layer_files(self) -> LayerFiles:
        """The layers as files that the kernel can mount."""
        return LayerFiles(
            [self._files[position] for position in sorted(self._files)], self._obstacle
        )

    async def open(self, position: int, plan: LayerPlan) -> ErofsLayer:
        """Open the layer at ``position`` of the image, from 1 at the bottom."""
        spare = plan.devices
        data: list[ErofsLayer] = []
        for number, part in enumerate(plan.data, 1):
            layer = await self._image(f"layer {position} data {number}", part, position, spare, ())
            if layer.image.devices:
                spare = spare[len(layer.image.devices) :]
            data.append(layer)
        return await self._image(f"layer {position}", plan, position, spare, data)

    async def _image(
        self,
        what: str,
        plan: LayerPlan,
        position: int,
        devices: Sequence[LayerPlan],
        data: Sequence[ErofsLayer],
    ) -> ErofsLayer:
        """Open an EROFS image; devices are fetched only if it has data on them."""
        reader = await self.reader(what, plan, position)
        number = next(self._numbers)
        layer = (
            RedirectingLayer(number, [reader], self._derived, self._inodes, data)
            if data
            else ErofsLayer(number, [reader], self._derived, self._inodes)
        )
        with _naming(f"{self._name} {what}"):
            await layer.open()
        if reader.guesses is not None:
            superblock = layer.image.superblock
            reader.guesses.metadata(superblock.meta_address, superblock.inode_count)
        wanted = [
            partial(self.reader, f"{what} device {index}", device, position)
            for index, device in enumerate(devices[: len(layer.image.devices)], 1)
        ]
        found = await all_of(wanted)
        with _naming(f"{self._name} {what}"):
            layer.attach(found)
        self._files[position] = [reader, *found]
        if data:
            self._obstacle = f"{what} shows files of other images"
        return layer

    async def reader(self, what: str, plan: LayerPlan, position: int) -> PagedReader:
        """Open one blob by itself.

        Raises:
            LazyfsError: it cannot be, and why.
        """
        digest = plan.descriptor.digest
        name = f"{self._name} {what} ({digest.algorithm}:{digest.encoded[:12]})"
        touched = None if self._recording is None else self._recording.layer()
        counters = LayerCounters(touched=touched)
        along = 0
        if self._together and plan.pointers is not None and plan.index is None:
            along = beginning(plan.pointers, self._together)
        opening = OpeningSource(
            await self._blob(plan.descriptor, counters), along, self._engine.turns
        )
        blob = KeptSpans(opening, digest, self._documents)
        index = None
        if plan.index is not None:
            table = await self._blob(plan.index, counters)
            index = KeptSpans(table, plan.index.digest, self._documents)
        number = next(self._numbers)
        context = LayerContext(number, name, self._options.verify, self._engine, self._pages)
        kept = [source for source in (blob, index) if source is not None]
        try:
            opened = await open_layer(plan, blob, index, counters, context)
        except (ImageFormatError, VerificationError):
            dropped = [source.give_up_kept() for source in kept]
            if not any(dropped):
                raise
            # The disk may have lied: once more, from the registry.
            opened = await open_layer(plan, blob, index, counters, context)
        for source in kept:
            source.opened()
        if opening.beginning_bytes and opened.chunks is not None:
            self._beginnings.append(opening)
            opened.reader.begin(0, opened.chunks.image_bytes_in(opening.beginning_bytes))
        self._reports.append((position, LayerReport(plan.descriptor, opened, counters, name)))
        return opened.reader

    def forget_beginnings(self) -> None:
        """All layers are open: what came along with their tables was taken, or is not wanted."""
        for opening in self._beginnings:
            opening.forget()
        self._beginnings.clear()

    async def _blob(self, descriptor: Descriptor, counters: LayerCounters) -> RegistrySource:
        return RegistrySource(await self._source.open_blob(descriptor), counters)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say in errors of what they are."""
    try:
        yield
    except LazyfsError as error:
        raise type(error)(f"{what}: {error}") from error


@asynccontextmanager
async def _open_local(
    name: str, paths: Sequence[str], *, in_directories: bool
) -> AsyncIterator[MountedImage]:
    pages = PageMemory()
    files: list[LocalFile] = []
    try:
        for number, path in enumerate(paths):
            files.append(LocalFile(number, Path(path), pages))
        layer = ErofsLayer(0, files[:1], Memo(DERIVED_BYTES))
        await layer.open()
        try:
            layer.attach(files[1:])
        except PlanError as error:
            raise MountError(f"{name}: {error}; name each device as ,device=FILE") from error
        tree = LayersTree([layer]) if in_directories else SingleTree(layer)
        explainer = Explainer(tree, [layer], (), MemoryStore(0), FailureMemory())
        report = LocalReport(name, files, int(in_directories))
        yield OpenedImage(tree, LayerFiles([files]), report, explainer)
    except OSError as error:
        raise MountError(f"{error.filename}: {error.strerror}") from error
    finally:
        for file in files:
            file.close()
