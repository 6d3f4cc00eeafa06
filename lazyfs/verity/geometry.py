"""Where the hash blocks of a tree lie in its payload.

A tree over n data blocks with p digests per hash block has ceil(n/p) leaf blocks (level 0),
and so on up to one top block; with a single data block it has no level at all. On disk the
top level comes first.
"""

from dataclasses import dataclass

from lazyfs.model import ByteRange
from lazyfs.verity.ondisk import SUPERBLOCK
from lazyfs.verity.params import VerityParams


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a tree."""

    first_block: int
    """Its first hash block, counted in hash blocks from the start of the payload."""
    blocks: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """All levels of a tree; made from checked parameters, so the number of levels is small."""

    levels: tuple[Level, ...]
    """Level 0 is the leaf level."""
    block_size_bytes: int
    tree_block: int
    """First block of the tree, counted from the start of the payload."""

    @property
    def payload_size_bytes(self) -> int:
        """Length of superblock, padding and tree.

        containerd writes only the 512 bytes of the superblock when there is a single data
        block; readers need no more than that.
        """
        return self.block_size_bytes * (
            self.tree_block + sum(level.blocks for level in self.levels)
        )

    def locate(self, block: int) -> tuple[int, int] | None:
        """Level, and index in it, of a block counted from the start of the payload."""
        for number in range(len(self.levels) - 1, -1, -1):
            index = block - self.levels[number].first_block
            if 0 <= index < self.levels[number].blocks:
                return number, index
        return None

    def digests(self, level: int, first: int, count: int, digest_bytes: int) -> ByteRange:
        """Where ``level`` keeps the digests of some blocks of the level below, in the payload.

        They lie side by side: digests fill a hash block, for both sizes are powers of two.
        Level 0 keeps those of data blocks; a tree over a single one has no level.
        """
        start = self.levels[level].first_block * self.block_size_bytes
        return ByteRange(start + first * digest_bytes, count * digest_bytes)


def geometry(params: VerityParams) -> Geometry:
    """The levels of the tree that ``params`` describe."""
    counts = []
    blocks = params.data_blocks
    while blocks > 1:
        blocks = -(-blocks // params.digests_per_block)
        counts.append(blocks)
    tree_block = -(-SUPERBLOCK.size_bytes // params.hash_block_size_bytes)
    first = tree_block
    levels = []
    for count in reversed(counts):
        levels.append(Level(first, count))
        first += count
    return Geometry(tuple(reversed(levels)), params.hash_block_size_bytes, tree_block)
