"""A layer with a chunk table: fetched chunk by chunk, every byte proven before it is served.

Two proofs, each with a form of storage that can be proven again without the network:

``VerityLayer``  has a dm-verity tree. Decompressed chunks are stored; each block read back
                 is checked against its leaf.
``FrameLayer``   has only the digests of its frames. The frames are stored as they came, and
                 are checked and decompressed again when they are read back.

So the disk is never trusted. ``--verify=fetch`` and ``off`` trust it (``StoredLayer``).
"""

import logging
from functools import partial

import trio

from cache.memo import Memo
from lazyfs.errors import DataBlockMismatchError, VerificationError
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.fetcher import Piece, PieceFetcher
from lazyfs.layer.hashes import HashPieces
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.model import ByteRange

DECODED_LIMIT_BYTES = 32 << 20
"""Decompressed chunks that a ``FrameLayer`` remembers (at least one)."""

log = logging.getLogger(__name__)


class StoredLayer(PagedReader):
    """Chunks are taken from the store as they are: proven on arrival at most."""

    def __init__(
        self,
        number: int,
        chunks: Chunks,
        fetcher: PieceFetcher,
        pages: PageMemory,
        counters: LayerCounters,
    ) -> None:
        """Read the chunks that ``fetcher`` brings."""
        super().__init__(number, chunks.image_size_bytes, pages, counters)
        self._chunks = chunks
        self._fetcher = fetcher

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, as the store has them."""
        return b"".join(await self._fetcher.read(self._chunks.over(offset, length)))


class VerityLayer(StoredLayer):
    """Every data block is checked against the dm-verity tree before it is served."""

    def __init__(
        self,
        number: int,
        chunks: Chunks,
        fetcher: PieceFetcher,
        pages: PageMemory,
        counters: LayerCounters,
        hashes: HashPieces,
        name: str,
    ) -> None:
        """Prove what ``fetcher`` brings by ``hashes``."""
        super().__init__(number, chunks, fetcher, pages, counters)
        self._hashes = hashes
        self._block = hashes.tree.params.data_block_size_bytes
        self._name = name

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image whose blocks were checked just now.

        Raises:
            DataBlockMismatchError: freshly fetched bytes do not match the tree either.
        """
        first = offset // self._block
        count = -(-(offset + length) // self._block) - first
        start = first * self._block
        span = ByteRange(start, min(count * self._block, self.size_bytes - start))
        try:
            data = await self._proven(first, count, span)
        except DataBlockMismatchError as error:
            # The store has rotted (or was tampered with): once more, from the registry.
            self.counters.verification_failures += 1
            pieces = [piece for piece, _, _ in self._chunks.over(*span)]
            what = ", ".join(piece.what for piece in pieces)
            log.error("%s: %s: rotten in the cache, fetched again: %s", self._name, what, error)
            for piece in pieces:
                await self._fetcher.discard(piece)
            try:
                data = await self._proven(first, count, span)
            except DataBlockMismatchError as again:
                self.counters.verification_failures += 1
                self.counters.failed(again)
                log.error(
                    "%s: %s: SHA-512 is right, dm-verity digest is not: %s", self._name, what, again
                )
                raise
        return data[offset - start : offset - start + length]

    async def _proven(self, first: int, count: int, span: ByteRange) -> bytes:
        self._hashes.begin(first, count)
        data = await super().read_proven(*span)
        await self._hashes.ensure(first, count)
        self._hashes.tree.verify(first, data)
        return data


class FrameLayer(PagedReader):
    """Without dm-verity: frames are stored, and proven again whenever they are read back."""

    def __init__(
        self,
        number: int,
        chunks: Chunks,
        fetcher: PieceFetcher,
        pages: PageMemory,
        counters: LayerCounters,
        workers: trio.CapacityLimiter,
        name: str,
    ) -> None:
        """Prove what ``fetcher`` brings by the digests of the chunk table."""
        super().__init__(number, chunks.image_size_bytes, pages, counters)
        self._chunks = chunks
        self._fetcher = fetcher
        self._workers = workers
        self._name = name
        self._decoded = Memo(DECODED_LIMIT_BYTES)

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, out of frames that have their SHA-512."""
        parts = self._chunks.table.parts(ByteRange(offset, length))
        undecoded = [index for index, _ in parts if self._decoded.get(index) is None]
        self._fetcher.want(self._chunks.piece(index) for index in undecoded)
        data = []
        for index, part in parts:
            chunk = await self._decoded.get_or_make(index, partial(self._decode, index))
            data.append(chunk[part.offset : part.end])
        return b"".join(data)

    async def _decode(self, index: int) -> bytes:
        piece = self._chunks.piece(index)
        try:
            return await self._proven(index, piece)
        except VerificationError as error:
            self.counters.verification_failures += 1
            log.error(
                "%s: %s: rotten in the cache, fetched again: %s", self._name, piece.what, error
            )
        await self._fetcher.discard(piece)
        return await self._proven(index, piece)

    async def _proven(self, index: int, piece: Piece) -> bytes:
        table = self._chunks.table
        (frame,) = await self._fetcher.read([(piece, 0, piece.where.length)])

        def decode() -> bytes:
            table.verify(index, frame)
            return table.decode(index, frame)

        return await trio.to_thread.run_sync(decode, limiter=self._workers)
