"""A layer's content put together from its chunks, in a file that an earlier run may have begun."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from lazyfs.convert.progress import ProgressTask
from lazyfs.errors import LazyfsError, VerificationError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.blockproof import BlockProof
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.contenthash import ContentHash
from lazyfs.layer.limits import Limits
from lazyfs.layer.metadata import LayerMetadata, VerityMetadata
from lazyfs.layer.placement import file_size, payload_offset
from lazyfs.model import ByteRange
from lazyfs.unpack.fetching import fetch_chunks
from lazyfs.unpack.folder import Journal
from lazyfs.verity.audit import BrokenBlock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Assembly:
    """Fills one file."""

    def __init__(
        self,
        file: ContentFile,
        metadata: LayerMetadata,
        journal: Journal,
        blob: BlobSource,
        limits: Limits,
        task: ProgressTask,
    ) -> None:
        """Go on with ``file`` as far as ``journal`` knows it."""
        self._file = file
        self._metadata = metadata
        self._table = metadata.table
        self._journal = journal
        self._blob = blob
        self._limits = limits
        self._task = task
        self._hash = ContentHash(file, metadata.table, limits.workers)
        self._proof: BlockProof | None = None
        self._known = set(journal.digests)
        """Chunks that are in the file, if nothing happened to them."""
        self._rotten: set[int] = set()
        """Chunks that are in the file and must be written over."""
        self._done: set[int] = set()
        self.resumed = 0
        """Chunks of an earlier run that were right."""

    async def run(self) -> str:
        """Get what is missing; the SHA-256 of the content.

        Raises:
            VerificationError, ImageFormatError: a chunk or hash block is not what it must be.
            SourceUnavailableError, OSError: the blob cannot be read, the disk is full.
        """
        if not self._journal.resumes:
            await self._in_thread(self._file.resize, 0)
        await self._in_thread(self._file.resize, file_size(self._metadata))
        digests: list[str] = []

        async def hash_content() -> None:
            digests.append(await self._hash.run())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hash_content)
            fresh: set[int] = set()
            if self._metadata.verity is not None:
                fresh = await self._prove_tree(self._metadata.verity)
            await self._check_known(fresh)
            missing = [index for index in range(len(self._table)) if index not in self._done]
            await self._fetch(missing, self._finish_chunk)
        await self._in_thread(self._check_cut_blocks)
        return digests[0]

    async def _prove_tree(self, verity: VerityMetadata) -> set[int]:
        """Have the tree in the file, and prove it.

        Returns:
            Chunks that were fetched for it, which are yet to be checked by it.
        """
        proof = BlockProof(
            self._file,
            self._metadata.image_size_bytes,
            payload_offset(self._metadata, verity),
            verity.params,
            verity.root_digest,
        )
        fresh: set[int] = set()
        whole = self._journal.resumes and not await self._in_thread(_broken, proof)
        if not whole:
            if verity.in_content:
                fresh = set(range(self._table.index_at(verity.payload.offset), len(self._table)))
                self._rotten |= fresh & self._known
                await self._fetch(sorted(fresh), self._store)
                self._known |= fresh
            else:
                await self._fetch_payload(verity.payload, proof.payload_offset)
            broken = await self._in_thread(_broken, proof)
            if broken:
                raise broken[0].error(verity.params.algorithm)
        self._proof = proof
        return fresh

    async def _fetch_payload(self, where: ByteRange, offset: int) -> None:
        """Copy the tree from the blob to its place behind the image."""
        async with self._blob.stream(where) as pieces:
            async for piece in pieces:
                # An earlier run may have left something there, so that zeros must be written.
                write = partial(self._file.write, holes=not self._journal.resumes)
                await self._in_thread(write, offset, piece)
                offset += len(piece)

    async def _check_known(self, fresh: set[int]) -> None:
        """Check the chunks that are in the file; those that are right are done."""

        async def check(index: int, held_bytes: int) -> None:
            try:
                if await self._in_thread(self._is_right, index):
                    self._mark(index)
                    self.resumed += index not in fresh
                else:
                    self._rotten.add(index)
            finally:
                self._limits.budget.give_back(held_bytes)

        async with trio.open_nursery() as nursery:
            for index in sorted(self._known):
                held_bytes = await self._limits.budget.take(self._table.chunk(index).length)
                nursery.start_soon(check, index, held_bytes)

    def _is_right(self, index: int) -> bool:
        chunk = self._table.chunk(index)
        data = self._file.read(chunk.offset, chunk.length)
        if self._proof is not None:
            return not self._proof.check(chunk.offset, data)
        return hashlib.sha256(data).digest() == self._journal.digests[index]

    async def _fetch(
        self, wanted: Sequence[int], take: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        await fetch_chunks(
            self._blob,
            self._table,
            wanted,
            take,
            requests=self._limits.requests,
            budget=self._limits.budget,
        )

    async def _finish_chunk(self, index: int, stored: bytes) -> None:
        await self._store(index, stored)
        self._mark(index)

    async def _store(self, index: int, stored: bytes) -> None:
        """Check a chunk and write it; one that is not what it must be is asked for once more."""
        try:
            await self._in_thread(self._take_in, index, stored)
        except VerificationError:
            self._blob.distrust(self._table.frame(index))
            stored = await self._blob.fetch(self._table.frame(index))
            await self._in_thread(self._take_in, index, stored)

    def _take_in(self, index: int, stored: bytes) -> None:
        try:
            self._table.verify(index, stored)
            data = self._table.decode(index, stored)
            chunk = self._table.chunk(index)
            broken = [] if self._proof is None else self._proof.check(chunk.offset, data)
            if self._proof is not None and broken:
                raise broken[0].error(self._proof.params.algorithm)
        except LazyfsError as error:
            raise type(error)(f"chunk {index}: {error}") from error
        self._file.write(chunk.offset, data, holes=index not in self._rotten)
        digest = b"" if self._metadata.verity is not None else hashlib.sha256(data).digest()
        self._journal.add(index, digest)

    def _mark(self, index: int) -> None:
        self._done.add(index)
        self._hash.done(index)
        self._task.advance(self._table.chunk(index).length)

    def _check_cut_blocks(self) -> None:
        """Check the data blocks that lie in two chunks, which no chunk alone could prove."""
        if self._proof is None:
            return
        size = self._proof.params.data_block_size_bytes
        for index in range(1, len(self._table)):
            offset = self._table.chunk(index).offset
            if offset % size and offset < self._metadata.image_size_bytes:
                broken = self._proof.check_block(offset // size)
                if broken:
                    raise broken[0].error(self._proof.params.algorithm)

    async def _in_thread(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limits.workers)


def _broken(proof: BlockProof) -> list[BrokenBlock]:
    """The broken hash blocks of a tree."""
    broken: list[BrokenBlock] = []
    proof.audit(broken.append)
    return broken
