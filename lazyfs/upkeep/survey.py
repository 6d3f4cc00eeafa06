"""What a cache folder holds: of which images, and of which kind."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from cache.eviction import StoredChunk
from cache.folder import LOCKS_NAME, TEMPORARY_NAME
from lazyfs.documents import Documents
from lazyfs.plan import LayerPlan
from lazyfs.store.index import FOLDER_NAME as STORES_NAME
from lazyfs.upkeep.folder import CONVERSIONS_NAME, CacheFolder, files_in
from lazyfs.upkeep.known import KnownImage, Stem, known_images, layer_stems


@dataclass(slots=True)
class Kept:
    """Some of the stored chunks."""

    files: int = 0
    size_bytes: int = 0
    """In whole blocks."""

    def add(self, chunks: Iterable[StoredChunk]) -> None:
        """Count some more."""
        for chunk in chunks:
            self.files += 1
            self.size_bytes += chunk.charged_bytes


@dataclass(frozen=True, slots=True)
class LayerUse:
    """What is stored of one layer."""

    digest: str
    blob_bytes: int
    chunks: int | None
    """How many it has; None: its table is not kept, so nothing can be said."""
    chunks_kept: int
    kept: Kept
    """With the pieces of its tree."""
    stems: frozenset[Stem] = frozenset()
    """Of what is stored."""


@dataclass(frozen=True, slots=True)
class ImageUse:
    """What is stored of one image."""

    image: KnownImage
    layers: tuple[LayerUse, ...]
    kept: Kept
    """What several of its layers share counts once."""


@dataclass(slots=True)
class Survey:
    """All that is stored."""

    images: list[ImageUse] = field(default_factory=list)
    total: Kept = field(default_factory=Kept)
    unattributed: list[StoredChunk] = field(default_factory=list)
    """Chunks that nothing that is kept refers to."""
    claimed: set[Stem] = field(default_factory=set)
    """What names the others."""


async def survey(folder: CacheFolder) -> Survey:
    """Find out what is stored of which image.

    Raises:
        OSError: the disk failed.
    """
    images = await trio.to_thread.run_sync(known_images, folder)
    chunks = await trio.to_thread.run_sync(folder.files.chunks)
    by_stem: dict[Stem, list[StoredChunk]] = {}
    found = Survey()
    found.total.add(chunks)
    for chunk in chunks:
        by_stem.setdefault(Stem.of(chunk.name), []).append(chunk)
    documents = Documents(folder.documents)
    layers: dict[str, LayerUse] = {}
    for image in images:
        for plan in image.plans:
            digest = str(plan.descriptor.digest)
            if digest not in layers:
                layers[digest] = await _use(plan, documents, by_stem)
                found.claimed |= layers[digest].stems
        uses = tuple(layers[str(plan.descriptor.digest)] for plan in image.plans)
        kept = Kept()
        for stem in frozenset[Stem]().union(*(use.stems for use in uses)):
            kept.add(by_stem[stem])
        found.images.append(ImageUse(image, uses, kept))
    for stem, stored in by_stem.items():
        if stem not in found.claimed:
            found.unattributed += stored
    return found


async def _use(
    plan: LayerPlan, documents: Documents, by_stem: dict[Stem, list[StoredChunk]]
) -> LayerUse:
    digest, size_bytes = str(plan.descriptor.digest), plan.descriptor.size_bytes
    named = await layer_stems(plan, documents)
    if named is None:
        return LayerUse(digest, size_bytes, None, 0, Kept())
    of_chunks = [stem for stem in named.chunks if stem in by_stem]
    stems = set(of_chunks)
    if named.tree in by_stem:
        stems.add(named.tree)
    kept = Kept()
    for stem in stems:
        kept.add(by_stem[stem])
    return LayerUse(digest, size_bytes, len(named.chunks), len(of_chunks), kept, frozenset(stems))


def sizes(folder: CacheFolder) -> dict[str, Kept]:
    """What each kind of file takes (blocks).

    Chunks by their form, documents by what they are, conversions, stores, unfinished ones.

    Raises:
        OSError: the disk failed.
    """
    kinds: dict[str, Kept] = {}

    def add(kind: str, count: int, size_bytes: int) -> None:
        kept = kinds.setdefault(kind, Kept())
        kept.files += count
        kept.size_bytes += size_bytes

    for chunk in folder.files.chunks():
        form = chunk.name.rpartition(".")[2].partition("-")[0]
        add(f"chunks/{form}", 1, chunk.charged_bytes)
    for document in folder.documents.kept():
        add(f"documents/{document.name.partition('-')[0]}", 1, document.size_bytes)
    for name in (CONVERSIONS_NAME, STORES_NAME, TEMPORARY_NAME, LOCKS_NAME):
        found = [size for _, size in files_in(folder.path / name)]
        add(name, len(found), sum(found))
    return dict(sorted(kinds.items()))
