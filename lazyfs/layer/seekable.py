"""A layer with a chunk table: fetched chunk by chunk, every byte proven before it is served.

Two proofs, each with a form of storage that can be proven again without the network:

``VerityLayer``  has a dm-verity tree. Decompressed chunks are stored; each block read back
                 is checked against its leaf.
``FrameLayer``   has only the digests of its frames. The frames are stored as they came, and
                 are checked and decompressed again when they are read back.

So the disk is never trusted. ``--verify=fetch`` and ``off`` trust it (``StoredLayer``).
"""

from collections.abc import Sequence
from functools import partial

import trio

from lazyfs.errors import DataBlockMismatchError, VerificationError
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.fetcher import Engine, Piece, PieceFetcher
from lazyfs.layer.hashes import HashPieces
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.together import all_of
from lazyfs.model import ByteRange

AT_ONCE_BYTES = 64 << 10
"""Up to so much is proven on the event loop, which takes 80 µs with SHA-512."""


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

    def proven_nowait(self, offset: int, length: int) -> bytes | None:
        """See ``PagedReader.proven_nowait``."""
        return self._stored_nowait(offset, length)

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, as the store has them."""
        return await self._stored(offset, length)

    def _stored_nowait(self, offset: int, length: int) -> bytes | None:
        parts = self._fetcher.read_nowait(self._chunks.over(offset, length))
        return None if parts is None else _joined(parts)

    async def _stored(self, offset: int, length: int) -> bytes:
        return _joined(await self._fetcher.read(self._chunks.over(offset, length)))

    async def have(self, offset: int, length: int) -> None:
        """See ``PagedReader.have``."""
        await self._fetcher.have([piece for piece, _, _ in self._chunks.over(offset, length)])


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
    ) -> None:
        """Prove what ``fetcher`` brings by ``hashes``."""
        super().__init__(number, chunks, fetcher, pages, counters)
        self._hashes = hashes
        self._block = hashes.tree.params.data_block_size_bytes

    def proven_nowait(self, offset: int, length: int) -> bytes | None:
        """See ``PagedReader.proven_nowait``."""
        if length > AT_ONCE_BYTES:
            return None
        first, count, span = self._blocks_over(offset, length)
        if self._hashes.tree.missing(first, count):
            return None
        data = self._stored_nowait(*span)
        if data is None or self._mismatch(span.offset, data) is not None:
            return None
        return data[offset - span.offset : offset - span.offset + length]

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image whose blocks were checked just now.

        Raises:
            DataBlockMismatchError: freshly fetched bytes do not match the tree either.
        """
        first, count, span = self._blocks_over(offset, length)
        self._hashes.begin(first, count)
        data = await self._stored(*span)
        await self._hashes.ensure(first, count)
        liars: list[str] = []
        fresh = False
        while self._mismatch(span.offset, data) is not None:
            wrong = self._wrong_chunks(span, data)
            if fresh:
                self._fetcher.blame(*wrong[0], liars)
            data = await self._renewed(span, data, wrong)
            fresh = True
            await self._hashes.ensure(first, count)
        return data[offset - span.offset : offset - span.offset + length]

    def _blocks_over(self, offset: int, length: int) -> tuple[int, int, ByteRange]:
        """The blocks under a range: the first, how many, and where they lie."""
        first = offset // self._block
        count = -(-(offset + length) // self._block) - first
        start = first * self._block
        return first, count, ByteRange(start, min(count * self._block, self.size_bytes - start))

    async def have(self, offset: int, length: int) -> None:
        """See ``PagedReader.have``; the hash blocks too."""
        first = offset // self._block
        count = -(-(offset + length) // self._block) - first
        self._hashes.begin(first, count)
        await super().have(offset, length)
        await self._hashes.ensure(first, count)

    async def _renewed(
        self, span: ByteRange, data: bytes, wrong: Sequence[tuple[Piece, DataBlockMismatchError]]
    ) -> bytes:
        """Bytes of ``span``, after the chunks that are wrong in ``data`` were fetched anew.

        The store has rotted or was tampered with, or unproven chunks were sent wrong.
        """
        fresh = {piece.key: await self._fetcher.renew(piece, error) for piece, error in wrong}
        parts = []
        start = 0
        for piece, offset, length in self._chunks.over(*span):
            chunk = fresh.get(piece.key)
            if chunk is None:
                parts.append(data[start : start + length])
            else:
                parts.append(chunk[offset : offset + length])
            start += length
        return b"".join(parts)

    def _wrong_chunks(
        self, span: ByteRange, data: bytes
    ) -> list[tuple[Piece, DataBlockMismatchError]]:
        """The chunks that the tree speaks against; a block that two share speaks against both."""
        wrong = []
        start = 0
        for piece, _, length in self._chunks.over(*span):
            first = start - start % self._block
            end = -(-(start + length) // self._block) * self._block
            error = self._mismatch(span.offset + first, data[first:end])
            if error is not None:
                wrong.append((piece, error))
            start += length
        return wrong

    def _mismatch(self, offset: int, data: bytes) -> DataBlockMismatchError | None:
        """What is wrong with whole blocks from ``offset`` on; their leaves must be in the tree."""
        try:
            self._hashes.tree.verify(offset // self._block, data)
        except DataBlockMismatchError as error:
            return error
        return None


def _joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


class FrameLayer(PagedReader):
    """Without dm-verity: frames are stored, and proven again whenever they are read back."""

    def __init__(
        self,
        number: int,
        chunks: Chunks,
        fetcher: PieceFetcher,
        pages: PageMemory,
        counters: LayerCounters,
        engine: Engine,
    ) -> None:
        """Prove what ``fetcher`` brings by the digests of the chunk table."""
        super().__init__(number, chunks.image_size_bytes, pages, counters)
        self._chunks = chunks
        self._fetcher = fetcher
        self._engine = engine

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, out of frames that have their SHA-512."""
        parts = self._chunks.table.parts(ByteRange(offset, length))
        if len(parts) == 1:
            index, part = parts[0]
            return (await self._chunk(index))[part.offset : part.end]
        known = self._engine.decoded.get
        undecoded = [index for index, _ in parts if known((self._number, index)) is None]
        self._fetcher.want(self._chunks.piece(index) for index in undecoded)
        chunks = await all_of([partial(self._chunk, index) for index, _ in parts])
        pairs = zip(chunks, parts, strict=True)
        return b"".join([chunk[part.offset : part.end] for chunk, (_, part) in pairs])

    async def have(self, offset: int, length: int) -> None:
        """See ``PagedReader.have``."""
        await self._fetcher.have([piece for piece, _, _ in self._chunks.over(offset, length)])

    async def _chunk(self, index: int) -> bytes:
        key = (self._number, index)
        return await self._engine.decoded.get_or_make(key, partial(self._decode, index))

    async def _decode(self, index: int) -> bytes:
        piece = self._chunks.piece(index)
        (frame,) = await self._fetcher.read([(piece, 0, piece.where.length)])
        try:
            return await self._proven(index, frame)
        except VerificationError as error:
            rotten = error
        return await self._proven(index, await self._fetcher.renew(piece, rotten))

    async def _proven(self, index: int, frame: bytes) -> bytes:
        table = self._chunks.table

        def decode() -> bytes:
            table.verify(index, frame)
            return table.decode(index, frame)

        return await trio.to_thread.run_sync(decode, limiter=self._engine.workers)
