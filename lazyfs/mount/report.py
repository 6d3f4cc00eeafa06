"""What ``lazyfs status`` shows of an opened image: a JSON document, made without waiting."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from cache.steady import SteadyStore
from cache.store import ChunkStore
from lazyfs.documents import KeptSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.local import LocalFile
from lazyfs.layer.open import OpenLayer
from lazyfs.mount.options import MountOptions
from lazyfs.resolve import ResolvedImage, pin_of
from registry.manifest import Descriptor

MAX_COUNTED_CHUNKS = 10_000
"""Where an image has more chunks, those in the cache are not counted in all layers: each costs a
system call, and nobody is served meanwhile."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer, as far as status needs it."""

    descriptor: Descriptor
    opened: OpenLayer
    counters: LayerCounters

    @property
    def chunks(self) -> int:
        """How many chunks it has; 0 if it is not read in chunks."""
        return len(self.opened.chunks.table) if self.opened.chunks else 0

    def document(self, store: ChunkStore, *, count_cached: bool) -> dict[str, object]:
        """The layer's part of the status."""
        chunks = self.opened.chunks
        cached = None
        if chunks and count_cached:
            cached = sum(store.contains(chunks.piece(index).key) for index in range(self.chunks))
        return {
            "digest": str(self.descriptor.digest),
            "mode": self.opened.mode.value,
            "lazy": self.opened.lazy,
            "why": self.opened.why,
            "verity": self.opened.proof,
            "size_bytes": self.opened.reader.size_bytes,
            "blob_bytes": self.descriptor.size_bytes,
            "chunks": self.chunks,
            "chunks_cached": cached,
            **_counts(self.counters),
        }


@dataclass(frozen=True, slots=True)
class ImageReport:
    """An image from a registry, a folder or an archive."""

    source: KeptSource
    resolved: ResolvedImage
    layers: Sequence[LayerReport]
    store: ChunkStore
    options: MountOptions

    def pin(self) -> str:
        """The manifest, whatever the image's tag will mean."""
        return pin_of(self.resolved)

    def document(self) -> dict[str, object]:
        """The status of this moment."""
        return {
            "image": self.resolved.name,
            "digest": str(self.resolved.descriptor.digest),
            "platform": self.resolved.platform,
            "resolution": self.source.note,
            "verify": self.options.verify.value,
            "layers": layer_documents(self.layers, self.store),
            "totals": totals([layer.counters for layer in self.layers]),
            "hosts": [asdict(host) for host in self.source.hosts()],
            "cache": cache_document(self.store, self.options),
        }


@dataclass(frozen=True, slots=True)
class LocalReport:
    """A local EROFS image and its devices."""

    name: str
    files: Sequence[LocalFile]

    def pin(self) -> str:
        """Which files these are, and in which state."""
        return ",".join(file.identity for file in self.files)

    def document(self) -> dict[str, object]:
        """The status of this moment."""
        return {
            "image": self.name,
            "digest": None,
            "platform": None,
            "verify": "off",
            "layers": [
                {
                    "digest": None,
                    "mode": "local",
                    "lazy": True,
                    "why": "a local file, read in place",
                    "verity": "nothing: the file is the user's own",
                    "size_bytes": file.size_bytes,
                    "blob_bytes": file.size_bytes,
                    "chunks": 0,
                    "chunks_cached": 0,
                    **_counts(file.counters),
                }
                for file in self.files
            ],
            "totals": totals([file.counters for file in self.files]),
            "hosts": [],
            "cache": None,
        }


def layer_documents(layers: Iterable[LayerReport], store: ChunkStore) -> list[dict[str, object]]:
    """The layers' parts of the status."""
    documents = []
    counted = 0
    for layer in layers:
        counted += layer.chunks
        fits = counted <= MAX_COUNTED_CHUNKS
        documents.append(layer.document(store, count_cached=fits))
    return documents


def cache_document(store: ChunkStore, options: MountOptions) -> dict[str, object]:
    """What the status tells of the cache."""
    steady = store if isinstance(store, SteadyStore) else None
    return {
        "path": str(options.cache_dir) if steady else None,
        "usage_bytes": store.usage_bytes(),
        "limit_bytes": options.cache_size_bytes,
        "problem": steady and steady.problem,
        "problem_since_s": steady and steady.problem_since_s,
    }


def _counts(counters: LayerCounters) -> dict[str, object]:
    return {
        "fetched_bytes": counters.fetched_bytes,
        "requests": counters.requests,
        "errors": counters.errors,
        "last_error": counters.last_error,
        "notes": list(counters.notes),
    }


def totals(layers: Sequence[LayerCounters]) -> dict[str, int]:
    """The counters of all layers together."""
    return {
        name: sum(getattr(counters, name) for counters in layers)
        for name in (
            "fetched_bytes",
            "read_bytes",
            "requests",
            "cache_hits",
            "cache_misses",
            "verification_failures",
            "errors",
        )
    }
