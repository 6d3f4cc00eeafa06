"""A layer with a chunk table: fetched chunk by chunk, every byte proven before it is served.

Two proofs, each with a form of storage that can be proven again without the network:

``VerityLayer``  has a dm-verity tree. Decompressed chunks are stored; each block read back
                 is checked against its leaf.
``FrameLayer``   has only the digests of its frames. The frames are stored as they came, and
                 are checked and decompressed again when they are read back.

So the disk is never trusted. ``--verify=fetch`` and ``off`` trust it (``StoredLayer``).
"""

import hashlib
import logging
from functools import partial

import trio

from cache.key import ChunkKey
from cache.memo import Memo
from lazyfs.errors import DataBlockMismatchError, VerificationError
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.fetcher import Piece, PieceFetcher
from lazyfs.layer.hashes import HashPieces
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.model import ByteRange
from lazyfs.seekable.chunktable import ChunkTable
from lazyfs.seekable.frames import decompress_chunk, verify_frame

DECODED_LIMIT_BYTES = 32 << 20
"""Decompressed chunks that a ``FrameLayer`` remembers (at least one)."""

log = logging.getLogger(__name__)


class Chunks:
    """The chunks of one blob as pieces to fetch."""

    def __init__(self, table: ChunkTable, blob_digest: str, form: str, *, verify: bool) -> None:
        """Describe the chunks of a table.

        Args:
            table: already proven.
            blob_digest: names the chunks of a table without digests.
            form: ``data``: store them decompressed; ``frame``: as they come.
            verify: whether frames are checked on arrival. Unverified chunks are stored
                under another form, so that no other mount takes them for verified ones.
        """
        self.table = table
        self._blob_digest = blob_digest
        self._form = form if verify else f"unverified{form}"
        self._decompress = form == "data"
        self._verify = verify

    def piece(self, index: int) -> Piece:
        """The chunk as the fetcher wants it."""
        digest = self.table.digest(index)
        length = self.table.chunk(index).length
        if digest is None:
            name = hashlib.sha256(f"{self._blob_digest} chunk {index}".encode()).hexdigest()
            key = ChunkKey("sha256", name, self._form)
        else:
            key = ChunkKey("sha512", digest.hex(), self._form)
        checked = digest if self._verify else None

        def take_in(frame: bytes) -> bytes:
            if checked is not None:
                verify_frame(frame, checked)
            return decompress_chunk(frame, length) if self._decompress else frame

        return Piece(key, self.table.frame(index), f"chunk {index}", take_in)

    def over(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """The chunks under a range of the image: index, offset in the chunk, length."""
        parts = []
        end = offset + length
        while offset < end:
            index = self.table.index_at(offset)
            chunk = self.table.chunk(index)
            part = min(end, chunk.end) - offset
            parts.append((index, offset - chunk.offset, part))
            offset += part
        return parts


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
        super().__init__(number, chunks.table.image_size_bytes, pages, counters)
        self._chunks = chunks
        self._fetcher = fetcher

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, as the store has them."""
        wanted = [
            (self._chunks.piece(index), start, part)
            for index, start, part in self._chunks.over(offset, length)
        ]
        return b"".join(await self._fetcher.read(wanted))


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
            pieces = [self._chunks.piece(index) for index, _, _ in self._chunks.over(*span)]
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
        super().__init__(number, chunks.table.image_size_bytes, pages, counters)
        self._chunks = chunks
        self._fetcher = fetcher
        self._workers = workers
        self._name = name
        self._decoded = Memo(DECODED_LIMIT_BYTES)

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, out of frames that have their SHA-512."""
        parts = self._chunks.over(offset, length)
        undecoded = [index for index, _, _ in parts if self._decoded.get(index) is None]
        self._fetcher.want(self._chunks.piece(index) for index in undecoded)
        data = []
        for index, start, part in parts:
            chunk = await self._decoded.get_or_make(index, partial(self._decode, index))
            data.append(chunk[start : start + part])
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
        digest = self._chunks.table.digest(index)
        length = self._chunks.table.chunk(index).length
        (frame,) = await self._fetcher.read([(piece, 0, piece.where.length)])

        def decode() -> bytes:
            if digest is None:
                raise AssertionError("a chunk without a digest cannot be proven by it")
            verify_frame(frame, digest)
            return decompress_chunk(frame, length)

        return await trio.to_thread.run_sync(decode, limiter=self._workers)
