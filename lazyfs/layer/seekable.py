"""A layer with a chunk table: fetched chunk by chunk, every byte proven before it is served.

Two proofs, each with a form of storage that can be proven again without the network:

``VerityLayer``  has a dm-verity tree. Decompressed chunks are stored; each block read back
                 is checked against its leaf, and later in the daemon's life against a
                 MAC of what was checked so (``macs.py``).
``FrameLayer``   has only the digests of its frames. The frames are stored as they came, and
                 are checked and decompressed again when they are read back.

So the disk is never trusted. ``--verify=fetch`` and ``off`` trust it (``StoredLayer``).
"""

from collections.abc import Collection, Sequence
from functools import partial

import trio

from lazyfs.errors import DataBlockMismatchError, VerificationError
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.engine import Engine
from lazyfs.layer.fetcher import PieceFetcher
from lazyfs.layer.hashes import HashPieces
from lazyfs.layer.macs import GRANULE_BYTES
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.piece import Piece
from lazyfs.layer.together import all_of
from lazyfs.model import ByteRange
from lazyfs.verity.params import hash_blocks

AT_ONCE_BYTES = 128 << 10
"""Up to so much is proven on the event loop: 170 µs with SHA-512, and 140 to let a thread do it."""

SAMPLES = 64
"""So many chunks are looked for to tell whether a layer has gaps."""


class ChunkedReader(PagedReader):
    """What is fetched chunk by chunk."""

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

    @property
    def ranges_at_once(self) -> int:
        """See ``BlobSource.ranges_at_once``."""
        return self._fetcher.ranges_at_once

    def begin(self, offset: int, length: int, *, background: bool = False) -> None:
        """See ``PagedReader.begin``."""
        pieces = [piece for piece, _, _ in self._chunks.over(offset, length)]
        self._fetcher.want(pieces, background=background)

    def announce(self, chunks: Collection[int]) -> None:
        """See ``PagedReader.announce``."""
        super().announce(chunks)
        self._fetcher.coming = {self._chunks.piece(index).key for index in chunks}

    async def have(self, ranges: Sequence[ByteRange]) -> None:
        """See ``PagedReader.have``."""
        await self._fetcher.have(self._chunks.under(ranges))

    def has_gaps(self) -> bool:
        """See ``PagedReader.has_gaps``."""
        return not self._fetcher.has(self._chunks.samples(SAMPLES))


class StoredLayer(ChunkedReader):
    """Chunks are taken from the store as they are: proven on arrival at most."""

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


class VerityLayer(StoredLayer):
    """Every data block is checked before it is served.

    Against the dm-verity tree, or later on against the MAC that was taken when it had passed.
    """

    def __init__(
        self,
        number: int,
        chunks: Chunks,
        fetcher: PieceFetcher,
        pages: PageMemory,
        counters: LayerCounters,
        hashes: HashPieces,
        engine: Engine,
    ) -> None:
        """Prove what ``fetcher`` brings by ``hashes``."""
        super().__init__(number, chunks, fetcher, pages, counters)
        self._hashes = hashes
        self._macs = engine.macs
        self._provers = engine.provers
        self._hash = hashes.tree.params.hasher()
        self._block = hashes.tree.params.data_block_size_bytes
        self._granule = max(GRANULE_BYTES, self._block)

    def proven_nowait(self, offset: int, length: int) -> bytes | None:
        """See ``PagedReader.proven_nowait``."""
        span = self._span(offset, length)
        granules = self._granules(span)
        macs = self._known(granules)
        if macs is None and length > AT_ONCE_BYTES:
            return None
        if (macs is None or granules != span) and self._hashes.tree.missing(*self._blocks(span)):
            return None
        data = self._stored_nowait(*span)
        if data is None:
            return None
        if macs is not None:
            known = self._is_known(span, granules, data, macs)
            return _cut(data, span, offset, length) if known else None
        wanted = self._hashes.tree.digests(*self._blocks(span))
        macs = self._macs_if_right(span, granules, data, wanted)
        if macs is None:
            return None
        self._remember(granules, macs)
        return _cut(data, span, offset, length)

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image that were checked just now: by their MACs, or by the tree.

        Raises:
            DataBlockMismatchError: freshly fetched bytes do not match the tree either.
        """
        span = self._span(offset, length)
        blocks = self._blocks(span)
        granules = self._granules(span)
        macs = self._known(granules)
        by_tree = macs is None or granules != span
        if by_tree:
            self._hashes.begin(*blocks, exactly=self._is_foreseen())
        if macs is None and span.length > AT_ONCE_BYTES:
            stored = await self._stored_and_right(span, granules)
            if stored is not None:
                return _cut(stored, span, offset, length)
        data = await self._stored(*span)
        if by_tree:
            await self._hashes.ensure(*blocks)
        if macs is None or not self._is_known(span, granules, data, macs):
            data = await self._proven_by_tree(span, data)
        return _cut(data, span, offset, length)

    async def _stored_and_right(self, span: ByteRange, granules: ByteRange) -> bytes | None:
        """What the store has of whole blocks, read and held against the tree in one thread.

        Returns:
            None if some of it is missing or wrong.
        """
        parts = self._chunks.over(*span)
        if not self._fetcher.has(piece for piece, _, _ in parts):
            return None
        blocks = self._blocks(span)
        await self._hashes.ensure(*blocks)
        wanted = self._hashes.tree.digests(*blocks)

        def prove(found: Sequence[bytes]) -> tuple[bytes, bytes | None]:
            data = _joined(found)
            return data, self._macs_if_right(span, granules, data, wanted)

        data, macs = await self._fetcher.prove(parts, prove) or (b"", None)
        if macs is None:
            return None
        self._remember(granules, macs)
        return data

    async def _proven_by_tree(self, span: ByteRange, data: bytes) -> bytes:
        """Bytes of whole blocks that stand the proof; fetched anew if ``data`` does not."""
        blocks = self._blocks(span)
        await self._hashes.ensure(*blocks)
        wanted = self._hashes.tree.digests(*blocks)
        granules = self._granules(span)
        if len(data) > AT_ONCE_BYTES:
            work = partial(self._macs_if_right, span, granules, data, wanted)
            macs = await trio.to_thread.run_sync(work, limiter=self._provers)
        else:
            macs = self._macs_if_right(span, granules, data, wanted)
        if macs is None:
            data = await self._mended(span)
            macs = self._macs_if_right(span, granules, data, wanted)
        if macs is None:
            raise AssertionError("mended, and still wrong")
        self._remember(granules, macs)
        return data

    async def _mended(self, span: ByteRange) -> bytes:
        """The right bytes of whole blocks, of which some were wrong."""
        blocks = self._blocks(span)
        data = await self._stored(*span)  # somebody may have mended them meanwhile
        liars: list[str] = []
        fresh = False
        await self._hashes.ensure(*blocks)
        while self._mismatch(span.offset, data) is not None:
            wrong = self._wrong_chunks(span, data)
            if fresh:
                self._fetcher.blame(*wrong[0], liars)
            data = await self._renewed(span, data, wrong)
            fresh = True
            await self._hashes.ensure(*blocks)
        return data

    def _span(self, offset: int, length: int) -> ByteRange:
        """The same range in whole blocks, of which the image's last may be short."""
        start = offset - offset % self._block
        end = -(-(offset + length) // self._block) * self._block
        return ByteRange(start, min(end, self.size_bytes) - start)

    def _blocks(self, span: ByteRange) -> tuple[int, int]:
        """First and number of the data blocks in a range of whole ones."""
        return span.offset // self._block, -(-span.length // self._block)

    def _granules(self, span: ByteRange) -> ByteRange:
        """The whole granules in a range; the image's last may be short."""
        granule = self._granule
        start = -(-span.offset // granule) * granule
        end = span.end if span.end == self.size_bytes else span.end - span.end % granule
        return ByteRange(start, max(0, end - start))

    def _known(self, granules: ByteRange) -> bytes | None:
        """The MACs of some granules; None if one is unknown, or there is none."""
        if not granules.length:
            return None
        first, count = granules.offset // self._granule, -(-granules.length // self._granule)
        return self._macs.get(self._number, first, count)

    def _remember(self, granules: ByteRange, macs: bytes) -> None:
        if macs:
            self._macs.put(self._number, granules.offset // self._granule, macs)

    def _is_known(self, span: ByteRange, granules: ByteRange, data: bytes, macs: bytes) -> bool:
        """Whether ``data`` has these MACs, and what of it is no whole granule is in the tree."""
        start, end = granules.offset - span.offset, granules.end - span.offset
        view = memoryview(data)
        return (
            self._macs.macs_of(view[start:end], self._granule) == macs
            and (not start or self._mismatch(span.offset, view[:start]) is None)
            and (end == span.length or self._mismatch(granules.end, view[end:]) is None)
        )

    def _macs_if_right(
        self, span: ByteRange, granules: ByteRange, data: bytes, wanted: bytes
    ) -> bytes | None:
        """The MACs of the whole granules, if the blocks have the digests ``wanted``; any thread."""
        if hash_blocks(self._hash, self._block, data) != wanted:
            return None
        if not granules.length:
            return b""
        start, end = granules.offset - span.offset, granules.end - span.offset
        return self._macs.macs_of(memoryview(data)[start:end], self._granule)

    def begin(self, offset: int, length: int, *, background: bool = False) -> None:
        """See ``PagedReader.begin``; the hash blocks too."""
        blocks = self._blocks(self._span(offset, length))
        self._hashes.begin(*blocks, exactly=self._is_foreseen())
        super().begin(offset, length, background=background)

    def _is_foreseen(self) -> bool:
        """Whether what readers want comes anyway, with the hash blocks for it."""
        return self.ahead is not None and bool(self.ahead.coming)

    def _is_coming(self, first_block: int, count: int) -> bool:
        """Whether somebody knows that a chunk with some of these data blocks will be wanted."""
        if self.ahead is None or count <= 0:
            return False
        start = first_block * self._block
        end = min(start + count * self._block, self.size_bytes)
        parts = self._chunks.table.parts(ByteRange(start, end - start))
        return any(index in self.ahead.coming for index, _ in parts)

    async def have(self, ranges: Sequence[ByteRange]) -> None:
        """See ``PagedReader.have``; the hash blocks too."""
        spans = [self._blocks(self._span(*where)) for where in ranges]
        self._hashes.begin_exactly(spans, self._is_coming)
        await super().have(ranges)
        for blocks in spans:
            await self._hashes.ensure(*blocks)

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

    def _mismatch(self, offset: int, data: bytes | memoryview) -> DataBlockMismatchError | None:
        """What is wrong with whole blocks from ``offset`` on; their leaves must be in the tree."""
        try:
            self._hashes.tree.verify(offset // self._block, data)
        except DataBlockMismatchError as error:
            return error
        return None


def _cut(data: bytes, span: ByteRange, offset: int, length: int) -> bytes:
    """The wanted part of the bytes of ``span``; no copy if that is all."""
    return data[offset - span.offset : offset - span.offset + length]


def _joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


class FrameLayer(ChunkedReader):
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
        super().__init__(number, chunks, fetcher, pages, counters)
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
