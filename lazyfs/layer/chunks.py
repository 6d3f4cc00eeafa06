"""The chunks of one blob as pieces to fetch and store."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from typing import TypeAlias

from cache.key import ChunkKey
from lazyfs.layer.piece import Piece
from lazyfs.model import ByteRange
from lazyfs.seekable.chunktable import ChunkTable
from lazyfs.seekable.digests import algorithm_of

KNOWN_PIECES = 1024
"""Chunks whose description (1 KiB) a mount remembers, of whatever layers: making one costs as much
as a small read."""

PieceMemory: TypeAlias = Callable[["Chunks", int], Piece]
"""The chunk of an index as the fetcher wants it."""


def remembered_pieces() -> PieceMemory:
    """A memory of the descriptions used last, for all layers of a mount."""
    return lru_cache(KNOWN_PIECES)(Chunks.describe)


class Chunks:
    """The chunks of one blob."""

    def __init__(
        self,
        table: ChunkTable,
        image_size_bytes: int,
        blob_digest: str,
        form: str,
        *,
        verify: bool,
        pieces: PieceMemory | None = None,
    ) -> None:
        """Describe the chunks of a table.

        Args:
            table: already proven, or of chunks that a tree will prove.
            image_size_bytes: of the image, with which the content of the chunks begins.
            blob_digest: names the chunks of a table without digests.
            form: ``data``: store them decompressed; ``frame``: as they come.
            verify: whether frames are checked on arrival. Unverified chunks are stored
                under another form, so that no other mount takes them for verified ones.
            pieces: remembers their descriptions; None: nothing does.
        """
        self.table = table
        self.image_size_bytes = image_size_bytes
        self._blob_digest = blob_digest
        self._form = form if verify else f"unverified{form}"
        self._decompress = form == "data"
        self._verify = verify
        self.piece: Callable[[int], Piece] = partial(pieces or Chunks.describe, self)
        """The chunk of an index as the fetcher wants it, remembered or made."""

    def describe(self, index: int) -> Piece:
        """Make the description of a chunk."""
        table = self.table
        digest = table.digest(index)
        where = table.frame(index)
        if digest is None:
            name = f"{self._blob_digest} chunk of {table.chunk(index)} in {where}"
            key = ChunkKey("sha256", hashlib.sha256(name.encode()).hexdigest(), self._form)
        else:
            key = ChunkKey(algorithm_of(digest), digest.hex(), self._form)

        def take_in(stored: bytes) -> bytes:
            if self._verify:
                table.verify(index, stored)
            return table.decode(index, stored) if self._decompress else stored

        return Piece(key, where, f"chunk {index}", take_in)

    def stored_bytes(self, index: int) -> int:
        """What a chunk takes where it is kept."""
        table = self.table
        return (table.chunk(index) if self._decompress else table.frame(index)).length

    def image_bytes_in(self, blob_bytes: int) -> int:
        """How much of the image the first ``blob_bytes`` of the blob hold; a chunk at least."""
        end = 0
        for index in range(len(self.table)):
            if index and self.table.frame(index).end > blob_bytes:
                break
            end = self.table.chunk(index).end
        return min(end, self.image_size_bytes)

    @property
    def of_image(self) -> int:
        """How many chunks hold the image; a hash tree may lie in those behind them."""
        return self.table.index_at(self.image_size_bytes - 1) + 1 if self.image_size_bytes else 0

    def span(self, first: int, end: int) -> ByteRange:
        """The part of the image that chunks from ``first`` to before ``end`` hold."""
        start = self.table.chunk(first).offset
        stop = min(self.table.chunk(end - 1).end, self.image_size_bytes)
        return ByteRange(start, stop - start)

    def samples(self, most: int) -> Iterator[Piece]:
        """At most so many of the chunks that hold the image, spread evenly, its last one first."""
        chunks = self.of_image
        step = -(-chunks // most)
        return (self.piece(index) for index in range(chunks - 1, -1, -max(1, step)))

    def between(self, gap: ByteRange) -> list[Piece]:
        """The chunks whose frames fill a range of the blob exactly; none if there are no such."""
        return [self.piece(index) for index in self.table.filling(gap)]

    def over(self, offset: int, length: int) -> list[tuple[Piece, int, int]]:
        """The chunks under a range of the content, with offset and length in each."""
        return [
            (self.piece(index), part.offset, part.length)
            for index, part in self.table.parts(ByteRange(offset, length))
        ]

    def under(self, ranges: Sequence[ByteRange]) -> list[Piece]:
        """The chunks under ranges of the content, each once."""
        return [self.piece(index) for index in self.indexes(ranges)]

    def indexes(self, ranges: Sequence[ByteRange]) -> Collection[int]:
        """Their indexes, in the order of the ranges."""
        return {index: None for where in ranges for index, _ in self.table.parts(where)}
