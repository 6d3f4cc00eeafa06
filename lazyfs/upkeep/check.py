"""Everything in a cache folder proven, as far as what is kept can prove it.

Chunks of known layers are proven as a mount would (``lazyfs.verify.cached``); of other chunks
those stored as they came have the digest that names them. What is broken is removed, so that the
next read fetches it.
"""

import contextlib
import hashlib
from dataclasses import dataclass, field

import trio

from cache.key import ChunkKey
from lazyfs.convert.progress import Progress
from lazyfs.documents import Documents
from lazyfs.errors import LazyfsError
from lazyfs.upkeep.folder import CacheFolder
from lazyfs.upkeep.known import OfflineSource, digest_in, known_images
from lazyfs.verify.cached import LayerCheck, kept_metadata
from lazyfs.verify.findings import LayerReport
from registry.digest import Digest
from registry.errors import RegistryError

PROVEN_BY_DIGEST = frozenset({"manifest", "content"})
"""Documents that are named by the digest of their content."""

READ_AT_ONCE_BYTES = 1 << 20


@dataclass(slots=True)
class Checked:
    """What was found."""

    chunks: int = 0
    """How many are well."""
    documents: int = 0
    broken: list[str] = field(default_factory=list)
    """What was wrong, and is removed."""
    unprovable: int = 0
    """Chunks that nothing that is kept can prove; a read proves them."""
    unprovable_bytes: int = 0


async def check(folder: CacheFolder, jobs: int, progress: Progress) -> Checked:
    """Check all, and remove what is broken.

    Args:
        folder: the cache.
        jobs: threads.
        progress: shows each layer.

    Raises:
        CacheError, OSError: the disk failed.
    """
    checked = Checked()
    await trio.to_thread.run_sync(_check_documents, folder, checked)
    workers = trio.CapacityLimiter(jobs)
    looked_at = await _check_layers(folder, workers, progress, checked)
    await trio.to_thread.run_sync(_check_others, folder, looked_at, progress, checked)
    return checked


def _check_documents(folder: CacheFolder, checked: Checked) -> None:
    for document in folder.documents.kept():
        content = folder.documents.read(document.name)
        digest = digest_in(document.name)
        good = content is not None
        if content is not None and digest and document.name.split("-")[0] in PROVEN_BY_DIGEST:
            good = Digest.of(content, digest.algorithm) == digest
        if good:
            checked.documents += 1
        else:
            folder.documents.discard(document.name)
            checked.broken.append(f"document {document.name}")


async def _check_layers(
    folder: CacheFolder, workers: trio.CapacityLimiter, progress: Progress, checked: Checked
) -> set[str]:
    """Check what is kept of known layers; the paths of all that was looked at."""
    documents = Documents(folder.documents)
    source = OfflineSource()
    images = await trio.to_thread.run_sync(known_images, folder)
    plans = {str(plan.descriptor.digest): plan for image in images for plan in image.plans}
    looked_at: set[str] = set()
    for number, (digest, plan) in enumerate(plans.items(), 1):
        if plan.pointers is not None:
            try:
                await kept_metadata(plan, source, documents)
            except (LazyfsError, RegistryError):
                continue  # its table is not kept: its chunks are among the others
        task = progress.begin(f"layer {number}/{len(plans)}")
        report = LayerReport(number, digest)
        layer = LayerCheck(plan, report, folder.store, True, workers)
        await layer.run(source, documents, task)
        task.finish()
        new = layer.looked_at - looked_at
        looked_at |= new
        checked.chunks += sum(1 for path in new if _is_kept(folder, path))
        findings = report.findings
        checked.broken += [f"layer {digest}: {found.message}" for found in findings.listed]
        if findings.count > len(findings.listed):
            more = findings.count - len(findings.listed)
            checked.broken.append(f"layer {digest}: {more} more")
    return looked_at


def _is_kept(folder: CacheFolder, path: str) -> bool:
    return folder.files.contains(path)


def _check_others(
    folder: CacheFolder, looked_at: set[str], progress: Progress, checked: Checked
) -> None:
    """Check chunks of layers that are not known (blocks)."""
    others = [chunk for chunk in folder.files.chunks() if chunk.name not in looked_at]
    if not others:
        return
    task = progress.begin("other chunks")
    task.stage("checking", sum(chunk.charged_bytes for chunk in others))
    for chunk in others:
        key = _key(chunk.name)
        verdict = None if key is None else _has_digest(folder, chunk.name, key)
        if verdict:
            checked.chunks += 1
        elif key is not None and key.form == "frame" and verdict is False:
            folder.files.discard(chunk.name)
            checked.broken.append(f"chunk {chunk.name}: it does not have its digest")
        elif key is None or verdict is False:
            checked.unprovable += 1
            checked.unprovable_bytes += chunk.charged_bytes
        task.advance(chunk.charged_bytes)
    task.finish()


def _key(path: str) -> ChunkKey | None:
    """The key of a chunk; None if it is none of ours."""
    algorithm, _, name = path.split("/")
    digest_hex, _, form = name.partition(".")
    key = ChunkKey(algorithm, digest_hex, form)
    with contextlib.suppress(ValueError):
        if key.relative_path == path:
            return key
    return None


def _has_digest(folder: CacheFolder, path: str, key: ChunkKey) -> bool | None:
    """Whether the content has the digest that names it; None if it is gone."""
    found = hashlib.new(key.algorithm)
    offset = 0
    size = folder.files.size(path)
    while offset < size:
        data = folder.files.read(path, offset, min(READ_AT_ONCE_BYTES, size - offset))
        if data is None:
            return False if folder.files.contains(path) else None
        found.update(data)
        offset += len(data)
    return found.hexdigest() == key.digest_hex if size else None
