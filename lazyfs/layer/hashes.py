"""The dm-verity tree of a layer, fetched in pieces as reads need it.

The hash blocks lie uncompressed in the blob, or behind the image in the chunks, as the layout
has it. They are fetched in aligned pieces or in their chunks, kept in the store (so that a
second daemon needs no network for them), and proven against the root digest whenever they are
taken from there: the store is not trusted.
"""

from collections.abc import Iterable, Sequence

from cache.key import ChunkKey
from lazyfs.errors import HashBlockMismatchError
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.fetcher import PieceFetcher
from lazyfs.layer.metadata import VerityMetadata
from lazyfs.layer.piece import Piece
from lazyfs.model import ByteRange
from lazyfs.verity.leaves import LeafMemory
from lazyfs.verity.params import VerityParams

PIECE_BYTES = 16 << 10
"""Hash blocks are stored in this unit; with SHA-512 it proves 1 MiB of data."""

PIECES_AT_ONCE = 4
"""So many are fetched together for a reader, who is likely to read on near by."""


def piece_size(params: VerityParams) -> int:
    """Bytes of each stored piece of a tree that has a place of its own in the blob."""
    return max(PIECE_BYTES, params.hash_block_size_bytes)


def piece_key(params: VerityParams, root_digest: bytes, number: int) -> ChunkKey:
    """What names such a piece in the store."""
    return ChunkKey(params.algorithm, root_digest.hex(), f"hash-{number}")


class HashPieces:
    """Feeds one ``TrustedHashTree`` from the store and the network."""

    def __init__(
        self,
        verity: VerityMetadata,
        chunks: Chunks,
        fetcher: PieceFetcher,
        leaves: LeafMemory,
    ) -> None:
        """Take hash blocks from where ``verity`` says: ``chunks`` or the blob itself.

        Args:
            verity: the tree.
            chunks: of the layer.
            fetcher: of the layer.
            leaves: keeps proven leaf blocks in memory.

        Raises:
            HashBlockMismatchError: the top of the tree does not have the root digest.
        """
        self.tree = verity.tree(leaves)
        self._root_digest = verity.root_digest
        self._payload = verity.payload
        self._chunks = chunks if verity.in_content else None
        self._fetcher = fetcher
        self._piece_bytes = piece_size(self.tree.params)

    def begin(self, first_block: int, count: int) -> None:
        """Begin to fetch the hash blocks that those data blocks will need, and their neighbours."""
        missing = self.tree.missing(first_block, count)
        if missing:
            self._want(self._numbers(missing, PIECES_AT_ONCE))

    def begin_exactly(self, spans: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch the hash blocks that several spans of data blocks will need, no more."""
        missing = [where for span in spans for where in self.tree.missing(*span)]
        if missing:
            self._want(self._numbers(missing))

    def _want(self, numbers: Sequence[int]) -> None:
        self._fetcher.want(piece for number in numbers for piece, _, _ in self._places(number))

    async def ensure(self, first_block: int, count: int) -> None:
        """Have every hash block in the tree that those data blocks need.

        On return there was no checkpoint since the tree was found complete, so that the
        caller can verify at once.

        Raises:
            HashBlockMismatchError: freshly fetched hash blocks do not match the root.
            SourceUnavailableError: hash blocks cannot be had.
        """
        while missing := self.tree.missing(first_block, count):
            for number in self._numbers(missing):
                await self._add(number)

    async def _add(self, number: int) -> None:
        places = self._places(number)
        data = await self._fetcher.read(places)
        liars: list[str] = []
        fresh = False
        while (error := self._mismatch(number, b"".join(data))) is not None:
            # From a rotten store or a bad answer: once more, from the registry.
            if fresh:
                self._fetcher.blame(places[0][0], error, liars)
            data = [
                (await self._fetcher.renew(piece, error))[offset : offset + length]
                for piece, offset, length in places
            ]
            fresh = True

    def _mismatch(self, number: int, data: bytes) -> HashBlockMismatchError | None:
        """Give a piece to the tree, or say what is wrong with it."""
        try:
            self.tree.add(self._where(number), data)
        except HashBlockMismatchError as error:
            return error
        return None

    def _numbers(self, missing: Sequence[ByteRange], at_once: int = 1) -> list[int]:
        """The pieces over some ranges of the payload, those of upper levels first.

        Args:
            missing: the ranges.
            at_once: pieces; where one of so many is among them, all are.
        """
        unit = at_once * self._piece_bytes
        count = -(-self.tree.payload_size_bytes // self._piece_bytes)
        numbers: set[int] = set()
        for where in missing:
            first, end = where.offset // unit * at_once, -(-where.end // unit) * at_once
            numbers.update(range(first, min(end, count)))
        return sorted(numbers)

    def _where(self, number: int) -> ByteRange:
        start = number * self._piece_bytes
        return ByteRange(start, min(self._piece_bytes, self.tree.payload_size_bytes - start))

    def _places(self, number: int) -> list[tuple[Piece, int, int]]:
        """Where a unit of the payload is stored: pieces, with offset and length in each."""
        where = self._where(number)
        in_whole = ByteRange(self._payload.offset + where.offset, where.length)
        if self._chunks is not None:
            return self._chunks.over(*in_whole)
        key = piece_key(self.tree.params, self._root_digest, number)
        return [(Piece(key, in_whole, f"hash blocks {number}", _as_it_is), 0, where.length)]


def _as_it_is(data: bytes) -> bytes:
    """Hash blocks are proven by the tree, which knows their parents, not on arrival."""
    return data
