"""What mounts have kept of an image in the cache folder, each part proven as a mount would.

Only what opens the layers is asked for again, if it is not kept itself: manifest, chunk tables,
the top of each tree. Chunks and hash blocks are never fetched.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from cache.directory import DirectoryStore
from cache.documents import DocumentFolder
from cache.errors import CacheOpenError
from cache.key import ChunkKey
from lazyfs.convert.progress import Progress, ProgressTask
from lazyfs.documents import FOLDER_NAME, Documents, KeptSource, KeptSpans
from lazyfs.errors import ImageFormatError, LazyfsError, VerificationError
from lazyfs.layer.blockproof import BlockProof
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.hashes import Cuts, piece_key
from lazyfs.layer.metadata import LayerMetadata, VerityMetadata, fetch_metadata
from lazyfs.layer.source import RegistrySource
from lazyfs.layer.whole import CHUNK_BYTES, chunk_key, decode_note, note_name
from lazyfs.model import ByteRange, VerifyMode
from lazyfs.plan import LayerPlan, plan_layers
from lazyfs.verify.findings import Kind, LayerReport, Report
from lazyfs.verify.image import parts_of, resolve
from lazyfs.verity.audit import BrokenBlock, TreeAudit
from registry.errors import RegistryError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Which cache, and what to do with what is rotten in it."""

    folder: Path
    repair: bool = False
    """Remove what is rotten."""


async def verify_cached(
    remote: ImageSource,
    platform: str | None,
    options: CacheOptions,
    jobs: int,
    progress: Progress,
) -> Report:
    """Check what the cache folder holds of an image.

    Args:
        remote: the image.
        platform: which one of an index; None: this machine's.
        options: which cache.
        jobs: threads.
        progress: shows each layer.

    Raises:
        CacheError: there is no such cache.
        PlanError: it is no image of EROFS layers.
        SourceUnavailableError: neither cache nor registry have its manifest.
    """
    if not await trio.Path(options.folder).is_dir():
        raise CacheOpenError(f"{options.folder}: there is no cache")
    report = Report(remote.name)
    with ExitStack() as stack:
        store = stack.enter_context(await DirectoryStore.open(options.folder, None))
        folder = stack.enter_context(DocumentFolder.open(options.folder, FOLDER_NAME))
        documents = Documents(folder)
        source = KeptSource(remote, documents)
        resolved = await resolve(source, platform, report)
        if resolved is None:
            return report
        layers = resolved.manifest.layers
        report.layers = [LayerReport(n, str(layer.digest)) for n, layer in enumerate(layers, 1)]
        plans = plan_layers(layers, VerifyMode.ALWAYS)
        workers = trio.CapacityLimiter(jobs)
        for number, plan in numbered(plans, layers):
            task = progress.begin(f"layer {number}/{len(layers)}")
            check = LayerCheck(plan, report.layers[number - 1], store, options.repair, workers)
            await check.run(source, documents, task)
            task.finish()
    return report


def numbered(
    plans: Sequence[LayerPlan], layers: Sequence[Descriptor]
) -> list[tuple[int, LayerPlan]]:
    """Every plan once, with the number of its layer."""
    found = {id(part.descriptor): part for plan in plans for part in parts_of(plan)}
    return [(n, found[id(layer)]) for n, layer in enumerate(layers, 1) if id(layer) in found]


async def kept_metadata(
    plan: LayerPlan, source: ImageSource, documents: Documents
) -> LayerMetadata:
    """Table and tree of a blob; from ``source`` if they are not kept, or what is kept is broken.

    Raises:
        LazyfsError, RegistryError: they cannot be had, or are wrong.
    """
    blobs = [plan.descriptor, *([plan.index] if plan.index else [])]
    kept = [
        KeptSpans(
            RegistrySource(await source.open_blob(blob), LayerCounters()),
            blob.digest,
            documents,
        )
        for blob in blobs
    ]
    index = kept[1] if len(kept) > 1 else None
    try:
        return await _fetch(plan, kept[0], index)
    except (VerificationError, ImageFormatError):
        dropped = [one.give_up_kept() for one in kept]
        if not any(dropped):
            raise
        return await _fetch(plan, kept[0], index)


async def _fetch(plan: LayerPlan, blob: KeptSpans, index: KeptSpans | None) -> LayerMetadata:
    if plan.pointers is None:
        raise AssertionError("a layer without a table")
    metadata = await fetch_metadata(plan.pointers, blob, index)
    if metadata.verity is not None:
        metadata.verity.tree()  # raises if its top is not that of the root digest
    return metadata


class LayerCheck:
    """The check of what is kept of one layer."""

    def __init__(
        self,
        plan: LayerPlan,
        report: LayerReport,
        store: DirectoryStore,
        repair: bool,
        workers: trio.CapacityLimiter,
    ) -> None:
        self._plan = plan
        self._report = report
        self._store = store
        self._repair = repair
        self._workers = workers
        self._rotten: dict[ChunkKey, None] = {}
        self.looked_at: set[str] = set()
        """Paths of what was read of the store."""

    async def run(self, source: ImageSource, documents: Documents, task: ProgressTask) -> None:
        """Check all that can be proven."""
        if self._plan.pointers is None:
            await self._check_whole(await documents.read(note_name(self._plan.descriptor.digest)))
        else:
            await self._check_parts(source, documents, task)
        if self._repair:
            for key in self._rotten:
                await self._store.discard(key)

    async def _check_whole(self, note: bytes | None) -> None:
        """Of a layer that was fetched whole each chunk has the digest that was noted then."""
        size, digests = decode_note(note or b"")
        if not digests:
            self._report.notes.append("nothing is kept of it as a whole, which it would have to be")
            return

        def check(index: int) -> bool:
            key = chunk_key(digests[index])
            length = min(CHUNK_BYTES, size - index * CHUNK_BYTES)
            data = self.read(key, length, chunk=index)
            if data is not None and hashlib.sha512(data).digest() != digests[index]:
                self.found(key, "it does not have the SHA-512 that was noted", chunk=index)
            return data is not None

        kept = await self._each(len(digests), check)
        self._report.counts.chunks = kept
        self._report.notes.append(f"{kept} of {len(digests)} chunks are kept")

    async def _check_parts(
        self, source: ImageSource, documents: Documents, task: ProgressTask
    ) -> None:
        """Of a layer that is read in parts each is proven by digest or tree."""
        try:
            metadata = await kept_metadata(self._plan, source, documents)
        except (LazyfsError, RegistryError) as error:
            self._report.findings.add(Kind.TABLE, error)
            return
        if metadata.verity is not None:
            await self._check_proven_by_tree(metadata, metadata.verity, task)
        elif metadata.chunks_proven:
            await self._check_frames(metadata, task)
        else:
            self._report.notes.append("not checked: nothing proves its chunks")

    def _chunks(self, metadata: LayerMetadata, form: str) -> Chunks:
        digest = str(self._plan.descriptor.digest)
        return Chunks(metadata.table, metadata.image_size_bytes, digest, form, verify=True)

    async def _check_frames(self, metadata: LayerMetadata, task: ProgressTask) -> None:
        """Without a tree frames are kept, and have their digests."""
        table = metadata.table
        chunks = self._chunks(metadata, "frame")

        def check(index: int) -> bool:
            stored = self._read(chunks, index, table.frame(index).length)
            if stored is not None:
                try:
                    table.verify(index, stored)
                    table.decode(index, stored)
                except LazyfsError as error:
                    self.found(chunks.piece(index).key, error, chunk=index)
            return stored is not None

        await self._each_chunk(metadata, check, task)

    async def _check_proven_by_tree(
        self, metadata: LayerMetadata, verity: VerityMetadata, task: ProgressTask
    ) -> None:
        """With a tree decompressed chunks are kept, and as much of the tree as was needed."""
        table = metadata.table
        chunks = self._chunks(metadata, "data")
        with tempfile.TemporaryFile(prefix="lazyfs-verify-") as spool:
            file = ContentFile(spool.fileno(), "temporary file")
            tree = _KeptTree(self, metadata, verity, chunks, file)
            audit = await trio.to_thread.run_sync(tree.audit, limiter=self._workers)
            unproven: list[int] = []

            def check(index: int) -> bool:
                where = table.chunk(index)
                data = self._read(chunks, index, where.length)
                if data is None:
                    return False
                for block in tree.proof.check(where.offset, data)[:1]:
                    error = block.error(verity.params.algorithm)
                    self.found(chunks.piece(index).key, error, chunk=index)
                size = verity.params.data_block_size_bytes
                blocks = range(where.offset // size, where.end // size)
                unproven.append(audit.unproven_among(blocks))
                return True

            await self._each_chunk(metadata, check, task)
        if any(unproven):
            self._report.notes.append(
                f"{sum(unproven)} blocks of {sum(map(bool, unproven))} of them could not be "
                "checked: their hash blocks are not kept"
            )

    async def _each_chunk(
        self, metadata: LayerMetadata, check: Callable[[int], bool], task: ProgressTask
    ) -> None:
        """Run ``check`` for all chunks in threads; it tells whether the chunk is kept."""
        table = metadata.table
        task.stage("checking", table.content_size_bytes)

        def work(index: int) -> bool:
            task.advance(table.chunk(index).length)
            return check(index)

        kept = self._report.counts.chunks = await self._each(len(table), work)
        self._report.notes.append(f"{kept} of {len(table)} chunks are kept")

    async def _each(self, count: int, check: Callable[[int], bool]) -> int:
        """Run ``check`` for so many indexes in threads; how often it was true."""
        indexes = iter(range(count))
        kept = 0

        async def some() -> None:
            nonlocal kept
            for index in indexes:
                found = await trio.to_thread.run_sync(check, index, limiter=self._workers)
                kept += found

        async with trio.open_nursery() as nursery:
            for _ in range(int(self._workers.total_tokens)):
                nursery.start_soon(some)
        return kept

    def _read(self, chunks: Chunks, index: int, length: int) -> bytes | None:
        return self.read(chunks.piece(index).key, length, chunk=index)

    def read(self, key: ChunkKey, length: int, /, **where: int) -> bytes | None:
        """What is kept under ``key``; None if nothing is, or too little, which is a finding."""
        data = self._store.read(key, 0, length)
        self.looked_at.add(key.relative_path)
        if data is None and self._store.contains(key):
            self.found(key, "shorter than it must be, or unreadable", **where)
        return data

    def found(self, key: ChunkKey, error: object, /, **where: int) -> None:
        """Note something rotten, once."""
        if key in self._rotten:
            return
        self._rotten[key] = None
        removed = " (removed)" if self._repair else ""
        self._report.findings.add(Kind.CACHE, f"{error}{removed}", **where)


class _KeptTree:
    """As much of a layer's tree as is kept, in a file."""

    def __init__(
        self,
        check: LayerCheck,
        metadata: LayerMetadata,
        verity: VerityMetadata,
        chunks: Chunks,
        file: ContentFile,
    ) -> None:
        self._check = check
        self._metadata = metadata
        self._verity = verity
        self._chunks = chunks
        self._file = file
        self.proof = BlockProof(
            file, metadata.image_size_bytes, 0, verity.params, verity.root_digest
        )
        self._units: list[tuple[ByteRange, ChunkKey, dict[str, int]]] = []
        """What is kept: place in the payload, key, place for a finding."""

    def audit(self) -> TreeAudit:
        """Collect the tree and prove it (blocks, slow)."""
        size = self.proof.payload_size_bytes
        self._file.resize(size)
        self._file.write(0, self._verity.head[:size])
        if self._verity.in_content:
            self._collect_chunks()
        else:
            self._collect_pieces()
        return self.proof.audit(self._broken)

    def _collect_pieces(self) -> None:
        cuts = Cuts.of(self._verity.params)
        for number in range(cuts.pieces):
            key = piece_key(self._verity.params, self._verity.root_digest, number)
            where = cuts.where(number)
            data = self._check.read(key, where.length, piece=number)
            if data is not None:
                self._file.write(where.offset, data, holes=False)
                self._units.append((where, key, {"piece": number}))

    def _collect_chunks(self) -> None:
        table = self._metadata.table
        payload = self._verity.payload
        for index in range(table.index_at(payload.offset), len(table)):
            chunk = table.chunk(index)
            key = self._chunks.piece(index).key
            data = self._check.read(key, chunk.length, chunk=index)
            if data is not None:
                skip = max(0, payload.offset - chunk.offset)
                where = ByteRange(chunk.offset + skip - payload.offset, chunk.length - skip)
                self._file.write(where.offset, data[skip:], holes=False)
                self._units.append((where, key, {"chunk": index}))

    def _broken(self, block: BrokenBlock) -> None:
        """Blame a broken hash block on the unit that it was taken from, if it was kept."""
        for where, key, place in self._units:
            if where.offset <= block.where.offset < where.end:
                self._check.found(key, block.error(self._verity.params.algorithm), **place)
