"""One layer's blob, read once from its start: every digest that there is for a part of it.

The content goes to a temporary file, for what comes after: dm-verity blocks that lie in two
chunks, and the EROFS image. What is broken leaves a hole there that nobody may read.
"""

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from lazyfs.convert.progress import ProgressTask
from lazyfs.errors import (
    DigestMismatchError,
    ImageFormatError,
    LazyfsError,
    PlanError,
    UnsupportedFeatureError,
    VerificationError,
)
from lazyfs.layer.blockproof import BlockProof, BrokenData, proof_in_content
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.contenthash import ContentHash
from lazyfs.layer.limits import Limits
from lazyfs.layer.metadata import LayerMetadata, VerityMetadata, fetch_metadata, plain_metadata
from lazyfs.layer.piece import cut
from lazyfs.layer.pieces import each_piece
from lazyfs.layer.placement import file_size, payload_offset
from lazyfs.layer.source import RegistrySource
from lazyfs.layer.streamed import decode_into
from lazyfs.model import ByteRange
from lazyfs.plan import LayerPlan
from lazyfs.seekable.mediatypes import LayerEncoding
from lazyfs.seekable.pointers import Pointers, TreePointer
from lazyfs.verify.content import Content
from lazyfs.verify.findings import Kind, LayerReport, place
from lazyfs.verity.audit import BrokenBlock
from registry.digest import Digest
from registry.manifest import Descriptor

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TAIL_BYTES = 1 << 20
"""What is no chunk is read in pieces of this size."""


@dataclass(frozen=True, slots=True)
class BlobJob:
    """What is to be checked."""

    plan: LayerPlan
    diff_id: Digest | None
    """None: the configuration says none."""
    report: LayerReport


class BlobCheck:
    """The check of one blob."""

    def __init__(
        self,
        job: BlobJob,
        blob: RegistrySource,
        index: RegistrySource | None,
        file: ContentFile,
        limits: Limits,
        task: ProgressTask,
    ) -> None:
        """Read ``blob`` (and the chunk table in ``index``) into the empty ``file``."""
        self._job = job
        self._findings = job.report.findings
        self._counts = job.report.counts
        self._notes = job.report.notes
        self._blob = blob
        self._index = index
        self._file = file
        self._limits = limits
        self._task = task
        self._proof: BlockProof | None = None
        self._broken: list[ByteRange] = []

    async def run(self) -> Content | None:
        """Check all; what is wrong goes to the report.

        Returns:
            What could be had of the content, if anything.

        Raises:
            SourceUnavailableError: the blob cannot be read.
            OSError: the disk is full.
        """
        self._counts.blob_bytes = self._blob.size_bytes
        self._task.stage("verifying", self._blob.size_bytes)
        metadata = await self._metadata()
        if metadata is None:
            return await self._decode_whole()
        await self._in_parts(metadata)
        self._counts.chunks = len(metadata.table)
        self._counts.image_bytes = metadata.image_size_bytes
        return Content(self._file, metadata.image_size_bytes, sorted(self._broken))

    async def _metadata(self) -> LayerMetadata | None:
        """Table and tree as far as they are sound; None: decode the blob from its start."""
        plan = self._job.plan
        pointers = plan.pointers
        if pointers is not None:
            try:
                return await fetch_metadata(pointers, self._blob, self._index)
            except (VerificationError, ImageFormatError, PlanError) as error:
                # Is it the table or the tree? Chunks can be checked without a tree.
                metadata = await self._table_alone(replace(pointers, tree=None))
                if metadata is not None:
                    self._findings.add(Kind.TREE, error)
                    return metadata
        if plan.encoding is LayerEncoding.RAW:
            return plain_metadata(pointers, self._blob.size_bytes)
        return None

    async def _table_alone(self, pointers: Pointers) -> LayerMetadata | None:
        """The table without the tree; None if it is broken or cannot be read."""
        try:
            metadata = await fetch_metadata(pointers, self._blob, self._index)
        except UnsupportedFeatureError as error:
            self._notes.append(f"chunks were not checked one by one: {error}")
            return None
        except (VerificationError, ImageFormatError, PlanError) as error:
            self._findings.add(Kind.TABLE, error)
            return None
        return replace(metadata, image_size_bytes=self._image_size(metadata.image_size_bytes))

    def _image_size(self, content_size_bytes: int) -> int:
        """The image's part of the content."""
        tree = self._job.plan.tree
        return content_size_bytes if tree is None else min(content_size_bytes, tree.offset)

    async def _decode_whole(self) -> Content | None:
        """Check a blob that can only be decoded from its start, or whose table is broken."""
        plan = self._job.plan
        streamed = await decode_into(
            self._file,
            self._blob,
            self._blob.size_bytes if plan.pointers is None else plan.pointers.chunks_end,
            plan.encoding,
            plan.descriptor.digest.algorithm,
            self._task.advance,
        )
        self._check_blob(streamed.blob_digest)
        if streamed.broken is not None:
            self._findings.add(Kind.BLOB, streamed.broken)
            return None
        self._check_diff_id(streamed.content_sha256)
        size = self._counts.image_bytes = self._image_size(streamed.content_size_bytes)
        if plan.tree is not None:
            with self._findings.take(Kind.TREE):
                await self._check_tree(plan.tree, streamed.content_size_bytes)
        return Content(self._file, size, [])

    async def _check_tree(self, tree: TreePointer, content_size_bytes: int) -> None:
        """Check a content that is there by the tree in it."""
        proof = await self._in_thread(proof_in_content, self._file, content_size_bytes, tree)
        payload = ByteRange(tree.offset, content_size_bytes - tree.offset)
        await self._audit(proof, partial(self._hash_block, proof, payload, "content"))

        def check(offset: int, length: int) -> None:
            for block in proof.check(offset, self._file.read(offset, length)):
                self._data_block(proof, block)

        await each_piece(tree.offset, check, self._limits.workers)

    async def _in_parts(self, metadata: LayerMetadata) -> None:
        """Check chunk by chunk."""
        await self._in_thread(self._file.resize, file_size(metadata))
        if metadata.verity is not None:
            await self._prove_tree(metadata, metadata.verity)
        content_hash = ContentHash(self._file, metadata.table, self._limits.workers)
        digests: list[str] = []

        async def hash_content() -> None:
            digests.append(await content_hash.run())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hash_content)
            self._check_blob(await self._read_all(metadata, content_hash))
        await self._in_thread(self._check_cut_blocks, metadata)
        if self._broken:
            self._notes.append("the diff ID was not checked: there are broken chunks")
        else:
            self._check_diff_id(digests[0])

    async def _prove_tree(self, metadata: LayerMetadata, verity: VerityMetadata) -> None:
        """Get the tree and prove it; data blocks can then be checked as they come."""
        offset = payload_offset(metadata, verity)
        with self._findings.take(Kind.TREE, **place("blob", verity.payload)):
            proof = BlockProof(
                self._file, metadata.image_size_bytes, offset, verity.params, verity.root_digest
            )
            if verity.in_content:
                await self._fetch_tree_chunks(metadata, verity.payload)
            else:
                async with self._blob.stream(verity.payload) as pieces:
                    async for piece in pieces:
                        await self._in_thread(self._file.write, offset, piece)
                        offset += len(piece)
            kind = "content" if verity.in_content else "blob"
            await self._audit(proof, partial(self._hash_block, proof, verity.payload, kind))

    async def _audit(self, proof: BlockProof, report: Callable[[BrokenBlock], None]) -> None:
        """Prove the tree; what is unproven then is not held against the data."""
        audit = await self._in_thread(proof.audit, report)
        self._proof = proof
        self._counts.hash_blocks = audit.blocks
        self._counts.data_blocks = proof.params.data_blocks
        lost = sum(map(len, audit.unproven))
        if lost:
            self._notes.append(f"{lost} data blocks were not checked: their digests are broken")

    def _hash_block(
        self, proof: BlockProof, payload: ByteRange, kind: str, block: BrokenBlock
    ) -> None:
        where = place(kind, ByteRange(payload.offset + block.where.offset, block.where.length))
        error = block.error(proof.params.algorithm)
        self._findings.add(Kind.HASH_BLOCK, error, level=block.level, block=block.number, **where)

    async def _fetch_tree_chunks(self, metadata: LayerMetadata, payload: ByteRange) -> None:
        """Get the chunks that hold the tree, ahead of the others."""
        table = metadata.table
        for index in range(table.index_at(payload.offset), len(table)):
            stored = await self._blob.fetch(table.frame(index))
            try:
                table.verify(index, stored)
                data = table.decode(index, stored)
            except LazyfsError as error:
                raise type(error)(f"not checked, since chunk {index} is broken") from error
            await self._in_thread(self._file.write, table.chunk(index).offset, data)

    async def _read_all(self, metadata: LayerMetadata, content_hash: ContentHash) -> str:
        """Read the whole blob, handing chunks on; its digest."""
        verity = metadata.verity
        blob_hash = hashlib.new(self._job.plan.descriptor.digest.algorithm)
        known = ByteRange(self._blob.size_bytes, 0)
        if verity is not None and not verity.in_content and self._proof is not None:
            known = verity.payload  # it was read before, and lies in the file
        await self._read(metadata, known.offset, blob_hash, content_hash)
        offset = 0 if verity is None else payload_offset(metadata, verity)
        for length in _pieces(known.length):
            blob_hash.update(await self._in_thread(self._file.read, offset, length))
            self._task.advance(length)
            offset += length
        behind = ByteRange(known.end, self._blob.size_bytes - known.end)
        if behind.length:
            async with self._blob.stream(behind) as pieces:
                async for piece in pieces:
                    await self._in_thread(blob_hash.update, piece)
                    self._task.advance(len(piece))
        return blob_hash.hexdigest()

    async def _read(
        self,
        metadata: LayerMetadata,
        end: int,
        blob_hash: "hashlib._Hash",
        content_hash: ContentHash,
    ) -> None:
        """Read the blob up to ``end``: every chunk is checked in a thread."""
        table = metadata.table
        frames_end = table.frame(len(table) - 1).end if len(table) else 0
        before = _pieces(table.frame(0).offset if len(table) else 0)
        frames = [table.frame(index).length for index in range(len(table))]
        lengths = [*before, *frames, *_pieces(end - frames_end)]
        first = len(before)

        async def check(index: int, stored: bytes, held_bytes: int) -> None:
            try:
                await self._in_thread(self._check_chunk, metadata, index, stored)
            finally:
                self._limits.budget.give_back(held_bytes)
            content_hash.done(index)

        async with (
            trio.open_nursery() as nursery,
            self._blob.stream(ByteRange(0, end)) as pieces,
            aclosing(cut(pieces, lengths)) as parts,
        ):
            for number, length in enumerate(lengths):
                index = number - first
                is_chunk = 0 <= index < len(table)
                wanted = length + table.chunk(index).length if is_chunk else 0
                held_bytes = await self._limits.budget.take(wanted)
                part = await anext(parts)
                await self._in_thread(blob_hash.update, part)
                self._task.advance(length)
                if is_chunk:
                    nursery.start_soon(check, index, part, held_bytes)

    def _check_chunk(self, metadata: LayerMetadata, index: int, stored: bytes) -> None:
        """Check one chunk, and put it into the file."""
        table = metadata.table
        chunk = table.chunk(index)
        try:
            table.verify(index, stored)
            data = table.decode(index, stored)
        except LazyfsError as error:
            self._broken.append(chunk)
            where = place("blob", table.frame(index)) | place("content", chunk)
            self._findings.add(Kind.CHUNK, error, chunk=index, **where)
            return
        self._file.write(chunk.offset, data)
        if self._proof is not None:
            for block in self._proof.check(chunk.offset, data):
                self._data_block(self._proof, block)

    def _data_block(self, proof: BlockProof, block: BrokenData) -> None:
        where = place("image", ByteRange(block.offset, proof.params.data_block_size_bytes))
        error = block.error(proof.params.algorithm)
        self._findings.add(Kind.DATA_BLOCK, error, block=block.block, **where)

    def _check_cut_blocks(self, metadata: LayerMetadata) -> None:
        """Check the data blocks that lie in two chunks, which no chunk alone could prove."""
        if self._proof is None:
            return
        size = self._proof.params.data_block_size_bytes
        content = Content(self._file, metadata.image_size_bytes, sorted(self._broken))
        for index in range(1, len(metadata.table)):
            offset = metadata.table.chunk(index).offset
            start = offset - offset % size
            if offset == start or offset >= metadata.image_size_bytes:
                continue
            try:
                content.check(start, min(size, metadata.image_size_bytes - start))
            except DigestMismatchError:
                continue
            for block in self._proof.check_block(start // size):
                self._data_block(self._proof, block)

    def _check_blob(self, found: str) -> None:
        digest = self._job.plan.descriptor.digest
        if found != digest.encoded:
            self._findings.add(Kind.BLOB, f"wanted {digest}, found {digest.algorithm}:{found}")

    def _check_diff_id(self, found: str) -> None:
        """Hold the content against the configuration and, in some layouts, the manifest."""
        for wanted in (self._job.diff_id, self._job.plan.diff_id):
            if wanted is None:
                continue
            if wanted.algorithm != "sha256":
                self._notes.append(f"the diff ID was not checked: {wanted} is not SHA-256")
            elif wanted.encoded != found:
                self._findings.add(Kind.DIFF_ID, f"wanted {wanted}, found sha256:{found}")

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limits.workers)


def _pieces(length: int) -> list[int]:
    """Lengths of the pieces that ``length`` bytes are read in."""
    whole, rest = divmod(length, TAIL_BYTES)
    return [TAIL_BYTES] * whole + ([rest] if rest else [])


async def check_digest(report: LayerReport, descriptor: Descriptor, blob: RegistrySource) -> None:
    """Check nothing but a blob's digest.

    Raises:
        SourceUnavailableError: it cannot be read.
    """
    report.counts.blob_bytes = blob.size_bytes
    digest = descriptor.digest
    blob_hash = hashlib.new(digest.algorithm)
    async with blob.stream(ByteRange(0, blob.size_bytes)) as pieces:
        async for piece in pieces:
            await trio.to_thread.run_sync(blob_hash.update, piece)
    if blob_hash.hexdigest() != digest.encoded:
        found = f"{digest.algorithm}:{blob_hash.hexdigest()}"
        report.findings.add(Kind.BLOB, f"wanted {digest}, found {found}")
