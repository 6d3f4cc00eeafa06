"""One layer, from its plan to its finished file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from lazyfs.convert.progress import ProgressTask
from lazyfs.errors import DigestMismatchError, UnpackError, UnsupportedFeatureError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.blockproof import proof_in_content
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.limits import Limits
from lazyfs.layer.metadata import LayerMetadata, fetch_metadata, plain_metadata
from lazyfs.layer.placement import payload_offset
from lazyfs.layer.source import RegistrySource
from lazyfs.layer.streamed import decode_into
from lazyfs.plan import LayerPlan
from lazyfs.seekable.mediatypes import LayerEncoding
from lazyfs.unpack.assembly import Assembly
from lazyfs.unpack.finished import FinishedLayer, check_by_tree
from lazyfs.unpack.folder import Identity, LayerFolder
from lazyfs.unpack.options import TreeChoice
from lazyfs.unpack.results import LayerResult, Outcome, Sidecar
from lazyfs.unpack.tree import append_tree, containerd_params
from registry.digest import Digest
from registry.interfaces import ImageSource

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class LayerJob:
    """What is to be done."""

    number: int
    plan: LayerPlan
    digests: tuple[Digest, ...]
    """SHA-256 of what the blob decodes to, from the configuration and other sources."""
    path: Path
    """The layer's folder."""
    file_name: str
    tree: TreeChoice


async def unpack_layer(
    source: ImageSource, job: LayerJob, limits: Limits, task: ProgressTask
) -> LayerResult:
    """Unpack one layer, or go on where an earlier run has stopped.

    Raises:
        UnpackError: something else is there, or another process is at work.
        VerificationError, ImageFormatError: the layer is not what the manifest promises.
        SourceUnavailableError, OSError: the blob cannot be read, the disk is full.

    Cancelled: what is done stays for the next run.
    """
    counters = LayerCounters()
    blob = RegistrySource(await source.open_blob(job.plan.descriptor), counters)
    index = None
    if job.plan.index is not None:
        index = RegistrySource(await source.open_blob(job.plan.index), counters)
    metadata = await _metadata(job.plan, blob, index)
    folder = LayerFolder(job.path, job.file_name)
    resumed = 0
    with folder.locked():
        if folder.is_finished():
            outcome = Outcome.KEPT
            sidecar = await _keep(folder, job, metadata, limits, task)
        else:
            outcome = Outcome.UNPACKED
            unpacking = _Unpacking(job, folder, blob, limits, task)
            with folder.partial() as file:
                sidecar = await unpacking.fill(file, metadata)
            resumed = unpacking.resumed
        found = folder.image.stat()
    task.finish()
    return LayerResult(
        number=job.number,
        digest=job.plan.descriptor.digest,
        path=folder.image,
        outcome=outcome,
        size_bytes=found.st_size,
        disk_bytes=found.st_blocks * 512,
        sidecar=sidecar,
        chunks=0 if metadata is None else len(metadata.table),
        resumed_chunks=resumed,
        fetched_bytes=counters.fetched_bytes,
    )


async def _metadata(
    plan: LayerPlan, blob: BlobSource, index: BlobSource | None
) -> LayerMetadata | None:
    """How the layer can be had in parts; None if it must be decoded from its start."""
    if plan.pointers is not None:
        try:
            return await fetch_metadata(plan.pointers, blob, index)
        except UnsupportedFeatureError:
            pass
    if plan.encoding is LayerEncoding.RAW:
        return plain_metadata(plan.pointers, blob.size_bytes)
    return None


async def _keep(
    folder: LayerFolder,
    job: LayerJob,
    metadata: LayerMetadata | None,
    limits: Limits,
    task: ProgressTask,
) -> Sidecar | None:
    """Check what is there already.

    Raises:
        UnpackError: it is something else.
    """
    with folder.finished() as file:
        sidecar = folder.read_sidecar()
        size = os.fstat(file.fd).st_size
        finished = FinishedLayer(
            file, size, sidecar, metadata, job.plan.tree, job.digests, job.tree
        )
        wrong = await finished.check(limits.workers, task)
    if wrong is not None:
        raise UnpackError(f"{folder.image} is there, but {wrong}: remove it to unpack it again")
    return sidecar


class _Unpacking:
    """Fills one unfinished file."""

    def __init__(
        self,
        job: LayerJob,
        folder: LayerFolder,
        blob: RegistrySource,
        limits: Limits,
        task: ProgressTask,
    ) -> None:
        self._job = job
        self._folder = folder
        self._blob = blob
        self._limits = limits
        self._task = task
        self.resumed = 0
        """Chunks of an earlier run."""

    async def fill(self, file: ContentFile, metadata: LayerMetadata | None) -> Sidecar | None:
        """Fill the file and give it its name."""
        if metadata is None:
            image_size, sidecar = await self._stream(file)
        else:
            sidecar = None
            image_size = metadata.image_size_bytes
            await self._assemble(file, metadata)
            if metadata.verity is not None:
                offset = payload_offset(metadata, metadata.verity)
                sidecar = Sidecar(metadata.verity.root_digest.hex(), offset)
        if self._job.tree is TreeChoice.NONE:
            await self._in_thread(file.resize, image_size)
            sidecar = None
        elif self._job.tree is TreeChoice.CONTAINERD:
            self._task.stage("hashing", image_size)
            params = await self._in_thread(containerd_params, file, image_size)
            sidecar = await append_tree(
                file, image_size, params, self._limits.workers, self._task.advance
            )
        await self._in_thread(self._folder.finish, file, sidecar)
        return sidecar

    async def _stream(self, file: ContentFile) -> tuple[int, Sidecar | None]:
        """Decode a blob from its start; the size of the image, and the tree behind it."""
        descriptor = self._job.plan.descriptor
        await self._in_thread(file.resize, 0)
        self._task.stage("unpacking", descriptor.size_bytes)
        streamed = await decode_into(
            file,
            self._blob,
            self._content_end(),
            self._job.plan.encoding,
            descriptor.digest.algorithm,
            self._task.advance,
        )
        if streamed.blob_digest != descriptor.digest.encoded:
            raise DigestMismatchError(
                f"blob: wanted {descriptor.digest}, "
                f"found {descriptor.digest.algorithm}:{streamed.blob_digest}"
            )
        if streamed.broken is not None:
            raise streamed.broken
        self._check_content(streamed.content_sha256)
        size, tree = streamed.content_size_bytes, self._job.plan.tree
        if tree is None:
            return size, None
        proof = await self._in_thread(proof_in_content, file, size, tree)
        await check_by_tree(proof, file, tree.offset, self._limits.workers)
        return tree.offset, Sidecar(tree.root_digest.hex(), tree.offset)

    def _content_end(self) -> int:
        """Where the encoded content ends in the blob."""
        pointers = self._job.plan.pointers
        return self._blob.size_bytes if pointers is None else pointers.chunks_end

    async def _assemble(self, file: ContentFile, metadata: LayerMetadata) -> None:
        """Get all chunks and the tree; what is there already is checked and kept."""
        table = metadata.table
        if not (metadata.chunks_proven or metadata.verity or self._job.digests):
            raise UnpackError("neither digest nor dm-verity tree proves what it holds")
        identity = Identity(self._job.plan.descriptor.digest, table.content_size_bytes, len(table))
        self._task.stage("unpacking", table.content_size_bytes)
        with self._folder.journal(identity) as journal:
            assembly = Assembly(file, metadata, journal, self._blob, self._limits, self._task)
            digest = await assembly.run()
            self.resumed = assembly.resumed
        self._check_content(digest)

    def _check_content(self, sha256: str) -> None:
        """Hold the content against the diff ID; a wrong one is not kept."""
        for wanted in self._job.digests:
            if sha256 != wanted.encoded:
                self._folder.give_up()
                raise DigestMismatchError(f"decodes to sha256:{sha256}, its diff ID is {wanted}")

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limits.workers)
