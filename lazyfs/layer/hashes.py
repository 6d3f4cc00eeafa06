"""The dm-verity tree of a layer, fetched in pieces as reads need it.

The hash blocks lie uncompressed in the blob, or behind the image in the chunks, as the layout
has it. They are fetched in aligned pieces or in their chunks, kept in the store (so that a
second daemon needs no network for them), and proven against the root digest whenever they are
taken from there: the store is not trusted.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cache.key import ChunkKey
from lazyfs.errors import HashBlockMismatchError
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.fetcher import PieceFetcher
from lazyfs.layer.metadata import VerityMetadata
from lazyfs.layer.piece import Piece, as_it_is
from lazyfs.model import ByteRange
from lazyfs.verity.geometry import geometry
from lazyfs.verity.leaves import LeafMemory
from lazyfs.verity.params import VerityParams

PIECE_BYTES = 8 << 10
"""Hash blocks are stored in this unit; with SHA-512 it proves 512 KiB of data: a chunk."""

PIECES_AT_ONCE = 8
"""So many are fetched together for a reader, who is likely to read on near by; fewer where the line
takes longer for them than for another request."""

PIECES_BESIDE = 16
"""So many, on either side, come sooner than they are wanted, that they need no request of their
own: 128 KiB, which take a slow line (10 Mbit/s) a tenth of a second."""

PIECES_BETWEEN = 3
"""At most so many that nobody wants come along between two that are wanted: a third of the gaps in
what profiles need are no longer, and longer ones cost more bytes than their requests are worth."""


class Cuts(NamedTuple):
    """How a tree that has a place of its own in the blob is cut into the pieces that are stored.

    The first leaf begins a piece, so that an aligned chunk needs no more of them than it must.
    """

    piece_bytes: int
    shift_bytes: int
    """So much shorter the first piece is."""
    payload_bytes: int
    first_leaf: int
    """The piece that begins with the first leaf."""
    digests: int
    """In a piece of leaves."""
    data_blocks: int

    @classmethod
    def of(cls, params: VerityParams) -> "Cuts":
        """The cuts of a tree of that shape."""
        tree = geometry(params)
        size = max(PIECE_BYTES, params.hash_block_size_bytes)
        first_leaf = tree.levels[0].first_block if tree.levels else 0
        shift = -first_leaf * tree.block_size_bytes % size
        return cls(
            size,
            shift,
            tree.payload_size_bytes,
            (first_leaf * tree.block_size_bytes + shift) // size,
            size // params.digest_size_bytes,
            params.data_blocks,
        )

    @property
    def pieces(self) -> int:
        """How many there are."""
        return self.number(self.payload_bytes - 1) + 1

    def number(self, offset: int) -> int:
        """The piece that has a byte of the payload."""
        return (offset + self.shift_bytes) // self.piece_bytes

    def where(self, number: int) -> ByteRange:
        """A piece's place in the payload."""
        start = number * self.piece_bytes - self.shift_bytes
        first = max(0, start)
        return ByteRange(first, min(start + self.piece_bytes, self.payload_bytes) - first)

    def proven_by(self, number: int) -> tuple[int, int]:
        """First and number of the data blocks that a piece of leaves proves; of others none."""
        first = (number - self.first_leaf) * self.digests
        return first, min(self.digests, self.data_blocks - first) if first >= 0 else 0


def piece_key(params: VerityParams, root_digest: bytes, number: int) -> ChunkKey:
    """What names such a piece in the store; ``hash-`` once named larger ones."""
    return ChunkKey(params.algorithm, root_digest.hex(), f"tree-{number}")


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
        self._cuts = Cuts.of(self.tree.params)

    def begin(self, first_block: int, count: int, *, exactly: bool = False) -> None:
        """Begin to fetch the hash blocks that those data blocks will need, and their neighbours.

        Args:
            first_block: of the data.
            count: of data blocks.
            exactly: without neighbours.
        """
        missing = self.tree.missing(first_block, count)
        if missing:
            along = 1 if exactly else self._fetcher.line.along_bytes // PIECE_BYTES
            self._want(self._numbers(missing, max(1, min(along, PIECES_AT_ONCE))))

    def begin_exactly(
        self, spans: Iterable[tuple[int, int]], is_coming: Callable[[int, int], bool]
    ) -> None:
        """Begin to fetch the hash blocks that several spans of data blocks will need.

        Those beside them come along, as far as they are for data that comes as well, and so does
        what lies in short gaps between them: a request for each portion of a profile, and for each
        place, would cost more than the bytes.

        Args:
            spans: first and number of data blocks.
            is_coming: whether some of a span of data blocks, which may be empty, is fetched anyway.
        """
        missing = [where for span in spans for where in self.tree.missing(*span)]
        if not missing:
            return
        numbers = set(self._numbers(missing))
        size = self._cuts.piece_bytes
        gap = min(self._fetcher.line.gap_bytes // size, PIECES_BETWEEN)
        for number in tuple(numbers):
            for step in (-1, 1):
                passed = 0
                for beside in range(number + step, number + step * (PIECES_BESIDE + 1), step):
                    if beside in numbers or passed > gap:
                        break
                    if is_coming(*self._cuts.proven_by(beside)):
                        numbers.add(beside)
                        passed = 0
                    else:
                        passed += 1
        self._want(sorted(numbers), gap_bytes=gap * size, apart=True)

    def _want(self, numbers: Sequence[int], *, gap_bytes: int = 0, apart: bool = False) -> None:
        pieces = [piece for number in numbers for piece, _, _ in self._places(number)]
        self._fetcher.want(pieces, gap_bytes=gap_bytes, apart=apart)

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
            self.tree.add(self._cuts.where(number), data)
        except HashBlockMismatchError as error:
            return error
        return None

    def _numbers(self, missing: Sequence[ByteRange], at_once: int = 1) -> list[int]:
        """The pieces over some ranges of the payload, those of upper levels first.

        Args:
            missing: the ranges.
            at_once: pieces; where one of so many is among them, all are.
        """
        count = self._cuts.pieces
        numbers: set[int] = set()
        for where in missing:
            first = self._cuts.number(where.offset) // at_once
            last = self._cuts.number(where.end - 1) // at_once
            numbers.update(range(first * at_once, min((last + 1) * at_once, count)))
        return sorted(numbers)

    def _places(self, number: int) -> list[tuple[Piece, int, int]]:
        """Where a unit of the payload is stored: pieces, with offset and length in each."""
        where = self._cuts.where(number)
        in_whole = ByteRange(self._payload.offset + where.offset, where.length)
        if self._chunks is not None:
            return self._chunks.over(*in_whole)
        key = piece_key(self.tree.params, self._root_digest, number)
        return [(Piece(key, in_whole, f"hash blocks {number}", as_it_is), 0, where.length)]
