"""The folder of a store: layers of many images as files, which may come while it is mounted.

FileTree( LayerFile( VerityLayer( PieceFetcher(RegistrySource), HashPieces ) ), ... )

Which images there are says the index in the cache. ``lazyfs store add`` writes it, and the
daemon looks into it when a file is missed: so neither has to wait for the other.
"""

import logging
import math
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from cache.documents import DocumentFolder
from cache.errors import CacheError
from cache.store import ChunkStore
from lazyfs.documents import Documents, KeptSource
from lazyfs.errors import LazyfsError, MountError, PlanError, SourceUnavailableError
from lazyfs.interfaces import ImageTree, LayerReader
from lazyfs.layer.engine import Engine
from lazyfs.localname import STORE_SCHEME
from lazyfs.mount.assemble import (
    REQUESTS_AT_ONCE,
    WORKER_THREADS,
    LayerOpener,
    Shared,
    background,
    open_chunk_store,
)
from lazyfs.mount.figures import Figures
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import MountOptions
from lazyfs.mount.report import (
    LayerReport,
    cache_document,
    cache_figures,
    failure_documents,
    layer_documents,
    laziness,
    modes,
    totals,
)
from lazyfs.plan import LayerPlan, plan_layer
from lazyfs.resolve import ResolvedImage, fetch_diff_ids, pin_of, resolve_image, resolve_pinned
from lazyfs.seekable.mediatypes import is_erofs_layer
from lazyfs.seekable.specannotations import Role, parse_spec_annotations
from lazyfs.store.file import LayerFile
from lazyfs.store.index import FOLDER_NAME, StoredImage, StoreIndex, decode
from lazyfs.store.tree import FileTree, Path
from registry.digest import Digest
from registry.errors import RegistryError
from registry.manifest import Manifest
from registry.transports import open_source

TRY_AGAIN_S = 30.0
"""How long an image that could not be opened is left alone."""

EXPECTED_ERRORS = (LazyfsError, RegistryError, OSError, trio.TooSlowError)

log = logging.getLogger(__name__)


@contextmanager
def store_documents(
    options: MountOptions, directory: str
) -> Iterator[tuple[StoreIndex, Documents]]:
    """The index of the store on ``directory``, and the manifests of all stores.

    Raises:
        MountError: the cache folder cannot be used.
    """
    try:
        folder = DocumentFolder.open(options.cache_dir, FOLDER_NAME)
    except CacheError as error:
        raise MountError(f"a store needs its cache folder: {error}") from error
    with folder:
        yield StoreIndex(folder, options.cache_dir / FOLDER_NAME, directory), Documents(folder)


async def describe(
    name: str, named_like: str | None, options: MountOptions, documents: Documents
) -> tuple[StoredImage, list[bool]]:
    """Find out what a store has to know about an image; its manifest and configuration are kept.

    Args:
        name: the image.
        named_like: another image, layer for layer the same content, whose diff IDs the layers
            shall go by: the tar image that ``name`` was made from.
        options: how to reach the registry.
        documents: of the store.

    Returns:
        The image, and which of its layers it has files for.

    Raises:
        LazyfsError: it cannot be had, or no layer of it could be served.
    """
    resolved, diff_ids = await _resolve(name, options, documents)
    lazy = lazy_layers(resolved.manifest)
    if not any(lazy):
        raise PlanError(
            f"{name} has no EROFS layer that a kernel can mount by itself: "
            'convert the image first ("lazyfs convert --help")'
        )
    if named_like is not None:
        count = len(diff_ids)
        _, diff_ids = await _resolve(named_like, options, documents)
        if len(diff_ids) != count:
            raise PlanError(f"{name} has {count} layers, {named_like} has {len(diff_ids)}")
    return StoredImage(name, pin_of(resolved), tuple(map(str, diff_ids))), lazy


async def _resolve(
    name: str, options: MountOptions, documents: Documents
) -> tuple[ResolvedImage, tuple[Digest, ...]]:
    try:
        async with open_source(name, options.access()) as remote:
            source = KeptSource(remote, documents)
            with trio.fail_after(options.timeout_s or math.inf):
                resolved = await resolve_image(source, options.platform)
                return resolved, await fetch_diff_ids(source, resolved.manifest)
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error
    except trio.TooSlowError as error:
        raise SourceUnavailableError(
            f"{name}: no answer within {options.timeout_s:g} s (--timeout sets this)"
        ) from error


def lazy_layers(manifest: Manifest) -> list[bool]:
    """Which layers are EROFS images that a kernel can mount without another blob."""
    roles = [parse_spec_annotations(layer.annotations).role for layer in manifest.layers]
    if any(role in (Role.DEVICE, Role.OVERLAY_DATA) for role in roles):
        return [False] * len(roles)
    return [is_erofs_layer(layer.media_type) is not None for layer in manifest.layers]


def path_of(diff_id: Digest) -> Path:
    """Where containerd looks for a layer (``CacheBlobPath`` in its internal/erofsutils)."""
    name = diff_id.encoded
    return diff_id.algorithm.encode(), name[:2].encode(), f"{name}.erofs".encode()


@asynccontextmanager
async def open_store(name: str, options: MountOptions) -> AsyncIterator[MountedImage]:
    """Open the store ``store:DIRECTORY``; an ``ImageOpener``.

    Raises:
        LazyfsError: it cannot be opened. An image that cannot be is left out, and tried again.
    """
    directory = name.removeprefix(STORE_SCHEME)
    async with open_chunk_store(options) as (store, notes), background() as nursery:
        nursery.start_soon(store.tend)
        with store_documents(options, directory) as (index, documents):
            engine = Engine(
                nursery=nursery,
                store=store,
                flights=store.flights,
                timeout_s=options.timeout_s,
                requests=trio.CapacityLimiter(REQUESTS_AT_ONCE),
                workers=trio.CapacityLimiter(WORKER_THREADS),
                notes=notes,
            )
            folder = StoreFolder(name, engine, options, index, documents, notes)
            await folder.look_again()
            await notes.trim()
            yield folder


@dataclass(slots=True)
class _Image:
    """An image of the store."""

    stored: StoredImage
    settled: trio.Event
    """Set once its layers are there, or the first try to get them has failed."""
    problem: str | None = None
    failed_s: float = math.inf
    """When the last try failed, by trio's clock."""
    opener: LayerOpener | None = None


class StoreFolder:
    """A ``MountedImage``: what a store serves at the moment."""

    pin = "store"
    layer_files = None

    def __init__(
        self,
        name: str,
        engine: Engine,
        options: MountOptions,
        index: StoreIndex,
        documents: Documents,
        notes: Documents,
    ) -> None:
        """Serve the images of ``index``, whose manifests are in ``documents``."""
        self.files = FileTree(self.look_again)
        self._name = name
        self._engine = engine
        self._options = options
        self._index = index
        self._documents = documents
        self._notes = notes
        self._shared = Shared()
        self._images: dict[StoredImage, _Image] = {}
        self._seen: bytes | None = None
        self._layers: dict[Digest, tuple[LayerPlan, LayerFile]] = {}

    @property
    def tree(self) -> ImageTree:
        """What FUSE serves."""
        return self.files

    @property
    def store(self) -> ChunkStore:
        """Where chunks are kept."""
        return self._engine.store

    async def look_again(self) -> None:
        """Take in what the index has got since, and try again what has failed for a while."""
        document = await trio.to_thread.run_sync(self._index.read)
        if document is not None and document != self._seen:
            try:
                for stored in decode(document):
                    if stored not in self._images:
                        self._images[stored] = _Image(stored, trio.Event())
                        self._engine.nursery.start_soon(self._hold, self._images[stored])
            except PlanError as error:
                log.error("%s: %s", self._name, error)
            self._seen = document
        late_s = trio.current_time() - TRY_AGAIN_S
        for image in list(self._images.values()):
            if image.failed_s <= late_s:
                image.failed_s = math.inf
                self._engine.nursery.start_soon(self._hold, image)
            await image.settled.wait()  # a new one; another try at an old one makes nobody wait

    async def _hold(self, image: _Image) -> None:
        """Have an image's layers in the tree for as long as the store lives."""
        stored = image.stored
        try:
            async with open_source(stored.name, self._options.access()) as remote:
                source = KeptSource(remote, self._documents)
                with trio.fail_after(self._options.timeout_s or math.inf):
                    resolved = await resolve_pinned(source, stored.pin)
                image.opener = LayerOpener(
                    source, stored.name, self._engine, self._options, self._notes, self._shared
                )
                self._shelve(image.opener, resolved.manifest, stored)
                image.problem = None
                image.settled.set()
                await trio.sleep_forever()
        except Exception as error:  # one that got out would end the store
            if not isinstance(error, EXPECTED_ERRORS):
                log.exception("internal error while opening %s", stored.name)
            image.problem = str(error) or f"no answer within {self._options.timeout_s:g} s"
            image.failed_s = trio.current_time()
            log.warning("%s: %s is left out for now: %s", self._name, stored.name, image.problem)
        finally:
            image.settled.set()

    def _shelve(self, opener: LayerOpener, manifest: Manifest, stored: StoredImage) -> None:
        """Put an image's layers into the tree.

        Raises:
            LazyfsError: its manifest and its note do not fit each other.
        """
        layers = manifest.layers
        if len(stored.diff_ids) != len(layers):
            raise PlanError(f"{len(stored.diff_ids)} diff IDs for {len(layers)} layers")
        for position, lazy in enumerate(lazy_layers(manifest)):
            if not lazy:
                continue
            what = f"layer {position + 1}"
            following = layers[position + 1] if position + 1 < len(layers) else None
            plan = plan_layer(what, layers[position], following, self._options.verify)
            diff_id = Digest.parse(stored.diff_ids[position])
            known = self._layers.get(diff_id)
            if known is not None:
                if known[0].descriptor.digest != plan.descriptor.digest:
                    log.warning(
                        "%s: %s of %s has the diff ID %s, but that goes on meaning the blob %s",
                        *(self._name, what, stored.name, diff_id, known[0].descriptor.digest),
                    )
                continue
            opening = partial(_open_layer, opener, what, plan, position)
            file = LayerFile(self._engine.nursery, opening)
            if self.files.add(path_of(diff_id), file):
                self._layers[diff_id] = (plan, file)

    def _reports(self) -> list[LayerReport]:
        openers = [image.opener for image in self._images.values() if image.opener is not None]
        return [report for opener in openers for report in opener.ordered_reports()]

    async def explain(self, path: bytes) -> dict[str, object]:
        """Nothing: what ``status`` tells of its files is all there is to them."""
        await trio.lowlevel.checkpoint()
        return {
            "path": os.fsdecode(path),
            "result": "unknown",
            "problem": "a store: see its status",
        }

    async def reads(self) -> dict[str, object]:
        """Nothing: layers of many images would be mixed up."""
        await trio.lowlevel.checkpoint()
        return {"problem": "a store records nothing"}

    def figures(self) -> Figures:
        """What metrics are made of."""
        reports = self._reports()
        return Figures(
            image=self._name,
            digest=None,
            layers=[report.counters for report in reports],
            modes=modes(reports),
            cache=cache_figures(self._engine.store, self._options),
            size_bytes=sum(report.opened.reader.size_bytes for report in reports),
        )

    async def status(self) -> dict[str, object]:
        """What ``lazyfs status`` shows."""
        reports = self._reports()
        return {
            "image": self._name,
            "digest": None,
            "platform": None,
            "verify": self._options.verify.value,
            **laziness([report.opened for report in reports]),
            "layers": await layer_documents(reports, self._engine.store),
            "totals": totals([report.counters for report in reports]),
            "hosts": [],
            "cache": cache_document(self._engine.store, self._options),
            "failures": failure_documents(self._engine.failures),
            "store": {
                "images": [
                    {"name": image.stored.name, "problem": image.problem}
                    for image in self._images.values()
                ],
                "files": [
                    {
                        "diff_id": str(diff_id),
                        "blob": str(plan.descriptor.digest),
                        "opened": file.reader is not None,
                        "problem": file.last_error,
                    }
                    for diff_id, (plan, file) in self._layers.items()
                ],
            },
        }


async def _open_layer(
    opener: LayerOpener, what: str, plan: LayerPlan, position: int
) -> LayerReader:
    try:
        return await opener.reader(what, plan, position)
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error


async def add_images(
    directory: str, names: Sequence[str], named_like: str | None, options: MountOptions
) -> list[tuple[StoredImage, list[bool]]]:
    """Add images to the store on a directory, mounted or not; all of them or none.

    Returns:
        Each with which of its layers it has files for.

    Raises:
        LazyfsError: as ``describe`` and ``store_documents``.
        CacheError: the list cannot be written.
    """
    async with open_chunk_store(options):  # the folder is made, and is safely ours
        with store_documents(options, directory) as (index, documents):
            found = [await describe(name, named_like, options, documents) for name in names]
            await trio.to_thread.run_sync(index.add, [stored for stored, _ in found])
            return found
