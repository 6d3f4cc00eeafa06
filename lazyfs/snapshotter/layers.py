"""The lazy layers: found in manifests, served by the store, mounted by the kernel; blocking.

A layer goes by its identity, a digest of its whole descriptor. What a lazy layer shows is proven by
the annotations of its descriptor, and neither its diff ID nor its blob's digest says what those
are: an image must not be able to put a tree of its own in the place of another image's layer.
"""

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import trio

from cache.errors import CacheError
from lazyfs.documents import KeptSource
from lazyfs.errors import LazyfsError, MountError, SourceUnavailableError, innermost
from lazyfs.mount.assemble import open_chunk_store
from lazyfs.mount.options import MountOptions
from lazyfs.mount.storefolder import lazy_layers, path_of, store_documents
from lazyfs.resolve import ResolvedImage, pin_of, resolve_image
from lazyfs.snapshotter import erofsmount
from lazyfs.snapshotter.credentials import Providers
from lazyfs.snapshotter.layerstore import LayerStore
from lazyfs.snapshotter.model import LayerRequest, Usage
from lazyfs.store.index import StoredImage, decode
from registry.digest import Digest
from registry.errors import RegistryError
from registry.manifest import Descriptor
from registry.transports import open_source

MAX_REMEMBERED_IMAGES = 64
MAX_LAYERS_AT_ONCE = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What a layer turned out to be."""

    layer: str | None
    """Its identity, hexadecimal; None: it cannot be lazy ..."""
    why: str
    """... and why (not), for a person."""


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    resolved: ResolvedImage
    layers: dict[str, str]
    """Of lazy layers: identity by digest of the blob."""


class LazyLayers:
    """The lazy layers below one folder."""

    def __init__(
        self,
        folder: Path,
        store: LayerStore,
        options: MountOptions,
        providers: Providers | None = None,
    ) -> None:
        """Mount them in ``folder``, with files of ``store`` that fetches by ``options``."""
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._providers = providers
        self._folder = folder
        self._store = store
        self._options = options
        self._images: OrderedDict[tuple[str, str | None], _Image] = OrderedDict()
        self._lives: dict[str, str] = {}
        """Of mounted layers, the life of the store that their files belong to."""
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._pool = ThreadPoolExecutor(MAX_LAYERS_AT_ONCE, "lazy-layer")

    def close(self) -> None:
        """Begin nothing more; what is mounted stays."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def path(self, layer: str) -> Path:
        """Where a layer is, or would be, mounted."""
        return self._folder / layer

    def find(self, request: LayerRequest) -> Found:
        """Whether a layer can be lazy; its image is then in the store."""
        try:
            image = self._image(request)
        except (LazyfsError, RegistryError, CacheError, OSError) as error:
            return Found(None, f"its manifest cannot be had: {error}")
        layer = image.layers.get(request.digest)
        if layer is not None:
            return Found(layer, "seekable EROFS, fetched as it is read")
        media_type = next(
            (
                descriptor.media_type
                for descriptor in image.resolved.manifest.layers
                if str(descriptor.digest) == request.digest
            ),
            None,
        )
        if media_type is None:
            return Found(None, f"the manifest of {image.name} has no such layer")
        return Found(None, f"{media_type} is not EROFS")

    def prepare(self, request: LayerRequest) -> None:
        """Begin to mount the other layers of an image, which will be wanted next."""
        with self._guard:
            image = self._images.get((request.image, request.manifest))
        for layer in () if image is None else image.layers.values():
            self._pool.submit(self._try_to_mount, layer)

    def _try_to_mount(self, layer: str) -> None:
        try:
            self.mount(layer)
        except LazyfsError as error:
            log.warning("layer %s: %s", layer[:12], error)

    def mount(self, layer: str) -> Path:
        """Have a layer mounted, by a store that lives; where.

        Raises:
            MountError: it cannot be.
        """
        with self._lock_of(layer):
            directory = self.path(layer)
            life = self._store.life()
            if self._life_of(layer) == life and erofsmount.is_mounted(directory):
                return directory
            erofsmount.unmount(directory)  # its store is gone, and with it its bytes
            file = self._store.directory.joinpath(
                *map(os.fsdecode, path_of(Digest("sha256", layer)))
            )
            try:
                file.stat()
            except OSError as error:
                raise MountError(
                    f"the store has no layer {layer[:12]}: {error.strerror}"
                ) from error
            erofsmount.mount(file, directory)
            self._note_life(layer, life)
            return directory

    def usage(self, layer: str) -> Usage:
        """What the cache has of a layer, as its store says.

        Raises:
            MountError: the store does not answer.
        """
        document = self._store.status()
        store = document.get("store")
        files = objects(store, "files") if isinstance(store, dict) else []
        blobs = [file.get("blob") for file in files if file.get("diff_id") == f"sha256:{layer}"]
        for report in objects(document, "layers"):
            if report.get("digest") in blobs:
                cached = report.get("cached_bytes")
                counted = report.get("fetched_bytes") if cached is None else cached
                return Usage(int(str(counted)), int(str(report.get("chunks_cached") or 0)))
        return Usage(0, 0)

    def keep_only(self, layers: Iterable[str]) -> None:
        """Let go of all layers but these, and of images that have none of them.

        Raises:
            LazyfsError, OSError, CacheError.
        """
        wanted = set(layers)
        with store_documents(self._options, os.fspath(self._store.directory)) as (index, _):
            for image in decode(index.read()):
                names = {Digest.parse(name).encoded for name in image.diff_ids}
                if not names & wanted:
                    index.remove(image.name)
        with self._guard:
            for key, image_seen in list(self._images.items()):
                if not wanted & set(image_seen.layers.values()):
                    del self._images[key]
        if self._folder.exists():
            for directory in self._folder.iterdir():
                if directory.suffix != ".life" and directory.name not in wanted:
                    self._let_go(directory.name)

    def _let_go(self, layer: str) -> None:
        with self._lock_of(layer):
            erofsmount.unmount(self.path(layer))
            self.path(layer).rmdir()
            self._life_file(layer).unlink(missing_ok=True)
            self._lives.pop(layer, None)
        log.info("layer %s is not used any more", layer[:12])

    def _lock_of(self, layer: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(layer, threading.Lock())

    def _life_file(self, layer: str) -> Path:
        return self._folder / f"{layer}.life"

    def _life_of(self, layer: str) -> str | None:
        """The life of the store that a mounted layer belongs to; also after a restart of ours."""
        if layer not in self._lives:
            try:
                self._lives[layer] = self._life_file(layer).read_text()
            except OSError:
                return None
        return self._lives[layer]

    def _note_life(self, layer: str, life: str) -> None:
        self._life_file(layer).write_text(life)
        self._lives[layer] = life

    def _image(self, request: LayerRequest) -> _Image:
        """The image of a request, looked up once and noted in the store's list."""
        key = (request.image, request.manifest)
        with self._guard:
            found = self._images.get(key)
        if found is None:
            if self._providers is not None:
                self._providers.ask_for(request.image)
            found = trio.run(self._look_up, request)
            with self._guard:
                self._images[key] = found
                if len(self._images) > MAX_REMEMBERED_IMAGES:
                    self._images.popitem(last=False)
        return found

    async def _look_up(self, request: LayerRequest) -> _Image:
        name = request.image
        if request.manifest is not None:
            name = f"{name.partition('@')[0]}@{Digest.parse(request.manifest)}"
        options = self._options
        try:
            async with open_chunk_store(options):  # the folder is made, and is safely ours
                with store_documents(options, os.fspath(self._store.directory)) as (index, kept):
                    async with open_source(name, options.access()) as remote:
                        with trio.fail_after(options.timeout_s or float("inf")):
                            resolved = await resolve_image(
                                KeptSource(remote, kept), options.platform
                            )
                    image = _describe(name, resolved)
                    if image.layers:
                        index.add([_stored(image)])
                    return image
        except RegistryError as error:
            raise SourceUnavailableError(str(error)) from error
        except trio.TooSlowError as error:
            raise SourceUnavailableError(f"{name}: no answer in time") from error
        except BaseExceptionGroup as group:
            cause = innermost(group)
            if isinstance(cause, LazyfsError | RegistryError | OSError):
                raise SourceUnavailableError(str(cause)) from group
            raise


def identity(layer: Descriptor) -> str:
    """Names what a lazy layer shows: SHA-256 of all that its descriptor says, hexadecimal."""
    words = [
        layer.media_type,
        str(layer.digest),
        layer.size_bytes,
        sorted(layer.annotations.items()),
    ]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _describe(name: str, resolved: ResolvedImage) -> _Image:
    layers = resolved.manifest.layers
    lazy = lazy_layers(resolved.manifest)
    return _Image(
        name,
        resolved,
        {
            str(layer.digest): identity(layer)
            for layer, is_lazy in zip(layers, lazy, strict=True)
            if is_lazy
        },
    )


def _stored(image: _Image) -> StoredImage:
    names = [f"sha256:{identity(layer)}" for layer in image.resolved.manifest.layers]
    return StoredImage(image.name, pin_of(image.resolved), tuple(names))


def objects(document: dict[str, object], key: str) -> list[dict[str, object]]:
    """The objects in a list of a status document."""
    found = document.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
