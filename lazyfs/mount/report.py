"""What ``lazyfs status`` shows of an opened image: a JSON document."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import trio

from cache.steady import SteadyStore
from cache.store import ChunkStore
from lazyfs.documents import KeptSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.failures import FailureMemory
from lazyfs.layer.local import LocalFile
from lazyfs.layer.open import OpenLayer
from lazyfs.mount.figures import CacheFigures, Figures
from lazyfs.mount.options import MountOptions
from lazyfs.profile.recording import Recording
from lazyfs.resolve import ResolvedImage, pin_of
from registry.manifest import Descriptor

MAX_COUNTED_CHUNKS = 100_000
"""Where an image has more chunks, those in the cache are not counted in all layers: each costs a
system call, and who asks waits for them."""

LOOKS_IN_A_ROW = 100
"""After so many of them readers are served."""


SHOWN_FAILURES = 20
NAMED_LAYERS = 10


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer, as far as status needs it."""

    descriptor: Descriptor
    opened: OpenLayer
    counters: LayerCounters
    name: str
    """As in log lines."""

    @property
    def chunks(self) -> int:
        """How many chunks it has; 0 if it is not read in chunks."""
        return len(self.opened.chunks.table) if self.opened.chunks else 0

    async def document(self, store: ChunkStore, *, count_cached: bool) -> dict[str, object]:
        """The layer's part of the status."""
        chunks = self.opened.chunks
        cached: list[int] | None = None
        if chunks and count_cached:
            cached = []
            for index in range(self.chunks):
                if index % LOOKS_IN_A_ROW == 0:
                    await trio.lowlevel.checkpoint()
                if store.contains(chunks.describe(index).key):
                    cached.append(index)
        return {
            "digest": str(self.descriptor.digest),
            "mode": self.opened.mode.value,
            "lazy": self.opened.lazy,
            "why": self.opened.why,
            "verity": self.opened.proof,
            "size_bytes": self.opened.reader.size_bytes,
            "blob_bytes": self.descriptor.size_bytes,
            "chunks": self.chunks,
            "chunks_cached": None if cached is None else len(cached),
            "cached_bytes": None
            if chunks is None or cached is None
            else sum(map(chunks.stored_bytes, cached)),
            **_counts(self.counters),
        }


class Background(Protocol):
    """What is fetched before anybody asks."""

    def document(self) -> dict[str, object]:
        """How far it is, ready for JSON."""
        ...


@dataclass(frozen=True, slots=True)
class ImageReport:
    """An image from a registry, a folder or an archive."""

    source: KeptSource
    resolved: ResolvedImage
    layers: Sequence[LayerReport]
    store: ChunkStore
    options: MountOptions
    failures: FailureMemory
    startup: Background
    layer_directories: int = 0
    """How many directories the mount has for its layers; 0: it shows the tree that they make."""

    def pin(self) -> str:
        """The manifest, whatever the image's tag will mean."""
        return pin_of(self.resolved)

    async def document(self) -> dict[str, object]:
        """The status of this moment."""
        return {
            "image": self.resolved.name,
            "digest": str(self.resolved.descriptor.digest),
            "platform": self.resolved.platform,
            "resolution": self.source.note,
            "verify": self.options.verify.value,
            "layer_directories": self.layer_directories,
            **laziness([layer.opened for layer in self.layers]),
            "layers": await layer_documents(self.layers, self.store),
            "totals": totals([layer.counters for layer in self.layers]),
            "hosts": [asdict(host) for host in self.source.hosts()],
            "cache": cache_document(self.store, self.options),
            "profile": self.startup.document(),
            "failures": failure_documents(self.failures),
        }

    def figures(self) -> Figures:
        """What metrics are made of."""
        return Figures(
            image=self.resolved.name,
            digest=str(self.resolved.descriptor.digest),
            layers=[layer.counters for layer in self.layers],
            modes=modes(self.layers),
            hosts=self.source.hosts(),
            cache=cache_figures(self.store, self.options),
            size_bytes=sum(layer.opened.reader.size_bytes for layer in self.layers),
        )


@dataclass(frozen=True, slots=True)
class LocalReport:
    """A local EROFS image and its devices."""

    name: str
    files: Sequence[LocalFile]
    layer_directories: int = 0
    """As in ``ImageReport``."""

    def pin(self) -> str:
        """Which files these are, and in which state."""
        return ",".join(file.identity for file in self.files)

    def figures(self) -> Figures:
        """What metrics are made of."""
        layers = [file.counters for file in self.files]
        size_bytes = sum(file.size_bytes for file in self.files)
        ways = {("local", True): len(layers)}
        return Figures(self.name, None, layers, ways, size_bytes=size_bytes)

    async def document(self) -> dict[str, object]:
        """The status of this moment."""
        return {
            "image": self.name,
            "digest": None,
            "platform": None,
            "verify": "off",
            "layer_directories": self.layer_directories,
            "lazy": True,
            "why": "a local file, read in place",
            "failures": [],
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
                    "cached_bytes": 0,
                    "chunks_cached": 0,
                    **_counts(file.counters),
                }
                for file in self.files
            ],
            "totals": totals([file.counters for file in self.files]),
            "hosts": [],
            "cache": None,
        }


def reads_document(report: ImageReport, recording: Recording) -> dict[str, object]:
    """Which blocks were read: a profile without files, and whether all of them are in it."""
    ours = {
        layer.counters.touched.number: position
        for position, layer in enumerate(report.layers)
        if layer.counters.touched is not None
    }
    return {
        "name": report.resolved.name,
        "options": replace(report.options, pin=report.pin()).to_json(),
        "image": str(report.resolved.descriptor.digest),
        "layers": [str(layer.descriptor.digest) for layer in report.layers],
        "blocks": [
            (ours[run.layer], run.first, run.length)
            for run in recording.runs()
            if run.layer in ours
        ],
        "complete": recording.complete,
    }


async def layer_documents(
    layers: Iterable[LayerReport], store: ChunkStore
) -> list[dict[str, object]]:
    """The layers' parts of the status."""
    documents = []
    counted = 0
    for layer in layers:
        counted += layer.chunks
        fits = counted <= MAX_COUNTED_CHUNKS
        documents.append(await layer.document(store, count_cached=fits))
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
        "statistics": asdict(store.statistics()),
    }


def cache_figures(store: ChunkStore, options: MountOptions) -> CacheFigures:
    """The same for metrics."""
    on_disk = isinstance(store, SteadyStore)
    return CacheFigures(
        store.statistics(),
        store.usage_bytes(),
        options.cache_size_bytes if on_disk else None,
        usable=isinstance(store, SteadyStore) and store.problem is None,
    )


def failure_documents(failures: FailureMemory) -> list[dict[str, object]]:
    """The latest failures, the newest first."""
    return [asdict(failure) for failure in failures.latest(SHOWN_FAILURES)]


def modes(layers: Iterable[LayerReport]) -> dict[tuple[str, bool], int]:
    """How many layers are read in which way, and whether that is lazy."""
    return Counter((layer.opened.mode.value, layer.opened.lazy) for layer in layers)


def laziness(layers: Sequence[OpenLayer]) -> dict[str, object]:
    """Whether a mount is lazy, and why (not); one layer that was fetched whole makes it not so."""
    whole = [number for number, layer in enumerate(layers, 1) if not layer.lazy]
    if not whole:
        return {"lazy": True, "why": "parts of all layers can be fetched one by one"}
    named = ", ".join(map(str, whole[:NAMED_LAYERS])) + (", ..." if whole[NAMED_LAYERS:] else "")
    why = f"{len(whole)} of {len(layers)} layers were fetched whole ({named})"
    return {"lazy": False, "why": f"{why}; the first: {layers[whole[0] - 1].why}"}


def _counts(counters: LayerCounters) -> dict[str, object]:
    return {
        "fetched_bytes": counters.fetched_bytes,
        "requests": counters.requests,
        "errors": counters.errors,
        "errors_by_cause": dict(counters.errors_by_cause),
        "last_error": counters.last_error,
        "notes": list(counters.notes),
    }


def totals(layers: Sequence[LayerCounters]) -> dict[str, int]:
    """The counters of all layers together."""
    return {
        name: sum(getattr(counters, name) for counters in layers)
        for name in (
            "fetched_bytes",
            "guessed_bytes",
            "guessed_right_bytes",
            "read_bytes",
            "memory_bytes",
            "requests",
            "cache_hits",
            "cache_misses",
            "verification_failures",
            "errors",
        )
    }
