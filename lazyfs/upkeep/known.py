"""The images that kept documents know, and which chunks belong to their layers."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import trio

from cache.documents import DocumentFolder
from lazyfs.documents import Documents, Resolution
from lazyfs.errors import LazyfsError
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.metadata import LayerMetadata
from lazyfs.layer.whole import decode_note, note_name
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerPlan, plan_layers
from lazyfs.upkeep.folder import CacheFolder
from lazyfs.verify.cached import kept_metadata, numbered
from registry.digest import Digest
from registry.errors import ContentError, RegistryError, TransportError
from registry.health import HostStatus
from registry.interfaces import BlobReader
from registry.manifest import Descriptor, Index, Manifest, decode, media_type_of
from registry.ranges import Range


class Stem(NamedTuple):
    """What names stored chunks, in whatever form they are stored."""

    algorithm: str
    digest_hex: str

    @classmethod
    def of(cls, path: str) -> "Stem":
        """Of a chunk's path below the chunk folder."""
        algorithm, _, name = path.split("/")
        return cls(algorithm, name.partition(".")[0])


class LayerStems(NamedTuple):
    """What the chunks of a layer are stored under."""

    chunks: list[Stem]
    """One for each chunk."""
    tree: Stem | None = None
    """Of the pieces of its dm-verity tree, if those are not chunks themselves."""


@dataclass(frozen=True, slots=True)
class KnownImage:
    """A manifest that is kept."""

    digest: str
    names: tuple[str, ...]
    """That meant it, or an index with it, when they were asked about last; may be empty."""
    manifest: Manifest
    plans: tuple[LayerPlan, ...]
    """Of its layers, bottom first; empty if it is no image that could be mounted."""


@dataclass(slots=True)
class _Documents:
    """Manifests and indexes by digest, and who names them."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    parents: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def names_of(self, digest: str) -> tuple[str, ...]:
        above, seen = [digest], {digest}
        found: list[str] = []
        while above:
            one = above.pop()
            found += self.names.get(one, ())
            parents = [parent for parent in self.parents.get(one, ()) if parent not in seen]
            seen.update(parents)
            above += parents
        return tuple(sorted(set(found)))


def known_images(folder: CacheFolder) -> list[KnownImage]:
    """The images whose manifests are kept, by name (blocks)."""
    known = _Documents()
    for documents in (folder.documents, folder.stores):
        _read_documents(documents, known)
    images = []
    for digest, manifest in known.manifests.items():
        plans: Sequence[LayerPlan] = ()
        with contextlib.suppress(LazyfsError, RegistryError):
            layers = manifest.layers
            plans = [plan for _, plan in numbered(plan_layers(layers, VerifyMode.ALWAYS), layers)]
        images.append(KnownImage(digest, known.names_of(digest), manifest, tuple(plans)))
    return sorted(images, key=lambda image: (image.names or ("~",), image.digest))


def _read_documents(documents: DocumentFolder, known: _Documents) -> None:
    for document in documents.kept():
        kind = document.name.partition("-")[0]
        raw = documents.read(document.name) if kind in ("name", "manifest") else None
        if raw is None:
            continue
        with contextlib.suppress(RegistryError, ValueError, KeyError, TypeError):
            if kind == "name":
                meant = Resolution.from_json(raw)
                name = meant.name or "(a name that an older version kept)"
                known.names.setdefault(str(meant.descriptor.digest), []).append(name)
                continue
            digest = digest_in(document.name)
            if digest is None or Digest.of(raw, digest.algorithm) != digest:
                continue
            found = decode(raw, media_type_of(raw))
            if isinstance(found, Index):
                for child in found.manifests:
                    known.parents.setdefault(str(child.digest), []).append(str(digest))
            else:
                known.manifests[str(digest)] = found


def digest_in(name: str) -> Digest | None:
    """The digest in the name of a document such as ``manifest-sha256-<hex>``."""
    parts = name.split("-")
    with contextlib.suppress(ContentError):
        if len(parts) >= 3:
            return Digest.parse(f"{parts[1]}:{parts[2]}")
    return None


async def layer_stems(plan: LayerPlan, documents: Documents) -> LayerStems | None:
    """What names the chunks of a layer; None if nothing that is kept tells."""
    if plan.pointers is None:
        note = await documents.read(note_name(plan.descriptor.digest))
        _, digests = decode_note(note or b"")
        chunks = [Stem("sha512", digest.hex()) for digest in digests]
        return LayerStems(chunks) if chunks else None
    try:
        metadata = await kept_metadata(plan, OfflineSource(), documents)
    except (LazyfsError, RegistryError):
        return None
    return await trio.to_thread.run_sync(_stems, plan, metadata)


def _stems(plan: LayerPlan, metadata: LayerMetadata) -> LayerStems:
    digest = str(plan.descriptor.digest)
    chunks = Chunks(metadata.table, metadata.image_size_bytes, digest, "data", verify=True)
    keys = (chunks.piece(index).key for index in range(len(metadata.table)))
    stems = [Stem(key.algorithm, key.digest_hex) for key in keys]
    if metadata.verity is None:
        return LayerStems(stems)
    verity = metadata.verity
    return LayerStems(stems, Stem(verity.params.algorithm, verity.root_digest.hex()))


class OfflineSource:
    """An ``ImageSource`` that has nothing: for those who may use what is kept only."""

    name = "the cache"

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``."""
        _refuse()

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        del descriptor
        _refuse()

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        del descriptor, limit_bytes
        _refuse()

    async def open_blob(self, descriptor: Descriptor) -> BlobReader:
        """As ``ImageSource.open_blob``."""
        return _OfflineBlob(descriptor.size_bytes)

    def hosts(self) -> tuple[HostStatus, ...]:
        """As ``ImageSource.hosts``."""
        return ()


@dataclass(frozen=True, slots=True)
class _OfflineBlob:
    size_bytes: int
    origin: str = OfflineSource.name
    ranges_at_once: int = 1

    async def fetch(self, offset: int, length: int) -> bytes:
        del offset, length
        _refuse()

    @asynccontextmanager
    async def stream(
        self, offset: int, length: int, *more: Range
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        del offset, length, more
        _refuse()
        yield

    def distrust(self, offset: int, length: int) -> str:
        del offset, length
        return self.origin


def _refuse() -> NoReturn:
    raise TransportError("it is not kept in the cache, and nobody else is asked")
