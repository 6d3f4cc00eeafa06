"""Making a cache smaller: within a size, without what nothing refers to, or empty."""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from lazyfs.documents import LIMIT_BYTES, document_name
from lazyfs.errors import MountError
from lazyfs.mount.census import census
from lazyfs.upkeep.folder import CONVERSIONS_NAME, CacheFolder, files_in
from lazyfs.upkeep.known import KnownImage, Stem, known_images
from lazyfs.upkeep.survey import survey

YOUNG_S = 600.0
"""What was used within this time may belong to an image that is being opened just now."""


@dataclass(slots=True)
class Removed:
    """What was removed, and what was not."""

    chunks: int = 0
    chunk_bytes: int = 0
    """In whole blocks."""
    leftovers: int = 0
    """Files of dead processes."""
    documents: int = 0
    conversions: int = 0
    stays: list[str] = field(default_factory=list)
    """What stays and why."""


@dataclass(frozen=True, slots=True)
class LiveUse:
    """What mounts of this moment read of a cache."""

    mounts: tuple[str, ...] = ()
    """Their mount points."""
    manifests: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()


async def collect(folder: CacheFolder, size_bytes: int | None, *, unreferenced: bool) -> Removed:
    """Remove what dead processes left, and more if that is wanted.

    Args:
        folder: the cache.
        size_bytes: what chunks may take afterwards; None: all that they take now.
        unreferenced: remove chunks that no kept document refers to.

    Raises:
        CacheError, OSError: the disk failed.
    """
    removed = Removed(leftovers=folder.swept)
    documents = len(folder.documents.kept())
    await trio.to_thread.run_sync(folder.documents.trim, LIMIT_BYTES)
    removed.documents = documents - len(folder.documents.kept())
    if unreferenced:
        found = (await survey(folder)).unattributed
        young_ns = time.time_ns() - int(YOUNG_S * 1e9)
        old = [chunk.name for chunk in found if chunk.last_use_ns < young_ns]
        await trio.to_thread.run_sync(folder.files.remove, old)
        if len(old) < len(found):
            removed.stays.append(
                f"{len(found) - len(old)} chunks that nothing refers to were used just now"
            )
    if size_bytes is not None:
        await trio.to_thread.run_sync(folder.files.shrink, size_bytes)
        if folder.files.usage_bytes() > size_bytes:
            removed.stays.append("more than that is in use just now")
    _count(folder, removed)
    return removed


async def clear(folder: CacheFolder, live: LiveUse) -> Removed:
    """Remove everything but what live mounts use, and what stores must not lose.

    Raises:
        CacheError, OSError: the disk failed.
    """
    removed = Removed(leftovers=folder.swept)
    known = await trio.to_thread.run_sync(known_images, folder)
    kept = [image for image in known if _is_live(image, live)]
    claimed: set[Stem] = set()
    for use in (await survey(folder)).images if kept else []:
        for layer in use.layers:
            if layer.digest in live.layers:
                claimed |= layer.stems
    chunks = await trio.to_thread.run_sync(folder.files.chunks)
    names = [chunk.name for chunk in chunks if Stem.of(chunk.name) not in claimed]
    await trio.to_thread.run_sync(folder.files.remove, names)
    removed.documents = await trio.to_thread.run_sync(_clear_documents, folder, kept, live)
    removed.conversions = await trio.to_thread.run_sync(_clear_conversions, folder.path)
    if live.mounts:
        removed.stays.append(
            f"{len(chunks) - len(names)} chunks and the documents of what is mounted on "
            + ", ".join(live.mounts)
        )
    if folder.stores.kept():
        removed.stays.append('what stores serve (see "lazyfs store remove")')
    _count(folder, removed)
    if removed.chunks < len(names):
        removed.stays.append(f"{len(names) - removed.chunks} chunks were being read just then")
    return removed


def live_use(path: Path) -> LiveUse:
    """What live mounts of this user read of the cache in ``path`` (blocks, not for long).

    Raises:
        MountError: a mount does not say what it uses.
    """
    mounts: list[str] = []
    manifests: set[object] = set()
    layers: set[object] = set()
    for document in census(None):
        where = str(document["mountpoint"])
        place = document.get("cache_dir")
        if document["state"] == "dead" or (place is not None and not _is_same(path, place)):
            continue
        if "layers" in document and not document.get("cache"):
            continue  # a local file, which is read in place
        if "layers" not in document:
            raise MountError(
                f"{where} is {document['state']} and does not say what it uses; "
                "try again later, or remove what it uses, too (--all)"
            )
        mounts.append(where)
        manifests.add(document.get("digest"))
        listed = document["layers"]
        for layer in listed if isinstance(listed, Sequence) else ():
            if isinstance(layer, Mapping):
                layers.add(layer.get("digest"))
    return LiveUse(tuple(mounts), _texts(manifests), _texts(layers))


def _texts(values: Iterable[object]) -> frozenset[str]:
    return frozenset(value for value in values if isinstance(value, str))


def _is_same(path: Path, other: object) -> bool:
    with contextlib.suppress(OSError):
        return isinstance(other, str) and path.samefile(other)
    return False


def _is_live(image: KnownImage, live: LiveUse) -> bool:
    layers = {str(plan.descriptor.digest) for plan in image.plans}
    return image.digest in live.manifests or not layers.isdisjoint(live.layers)


def _clear_documents(folder: CacheFolder, kept: Sequence[KnownImage], live: LiveUse) -> int:
    """Remove documents that live images do not need to be mounted again; how many."""
    needed = {digest.partition(":")[2] for digest in live.layers}
    for image in kept:
        needed.add(image.digest.partition(":")[2])
        config = image.manifest.config.digest
        needed.add(document_name("content", config).rpartition("-")[2])
    manifests = [image.digest.encode() for image in kept]
    count = 0
    for document in folder.documents.kept():
        if any(digest in document.name for digest in needed):
            continue
        if document.name.startswith(("name-", "manifest-")):
            content = folder.documents.read(document.name) or b""  # a name, or an index
            if any(digest in content for digest in manifests):
                continue
        folder.documents.discard(document.name)
        count += 1
    return count


def _clear_conversions(path: Path) -> int:
    count = 0
    for file, _ in files_in(path / CONVERSIONS_NAME):
        file.unlink(missing_ok=True)
        count += 1
    return count


def _count(folder: CacheFolder, removed: Removed) -> None:
    statistics = folder.files.statistics()
    removed.chunks = statistics.evictions
    removed.chunk_bytes = statistics.bytes_evicted
