"""Prove a whole hash tree, level by level, and say what is broken and what that leaves unproven.

Unlike ``TrustedHashTree`` this keeps nothing of the tree but the ranges that are unproven: the
caller has the payload at hand, in a file as a rule.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lazyfs.errors import HashBlockMismatchError
from lazyfs.model import ByteRange
from lazyfs.steps import Need, Steps
from lazyfs.verity.geometry import Geometry, geometry
from lazyfs.verity.params import VerityParams

PIECE_BYTES = 1 << 20
"""About how much of a level is looked at together."""


class BrokenBlock(NamedTuple):
    """A hash block that does not have the digest that its parent gives."""

    level: int
    number: int
    where: ByteRange
    """In the payload."""
    wanted: bytes
    found: bytes

    def error(self, algorithm: str) -> HashBlockMismatchError:
        """What to raise for it."""
        return HashBlockMismatchError(
            f"hash block {self.number} of level {self.level}: wanted "
            f"{algorithm}:{self.wanted.hex()}, found {algorithm}:{self.found.hex()}"
        )


@dataclass(slots=True)
class TreeAudit:
    """What can be believed of a tree."""

    blocks: int = 0
    """Hash blocks that were looked at."""
    unproven: list[range] = field(default_factory=list)
    """Data blocks whose digests in the tree mean nothing, in order."""

    def is_proven(self, data_block: int) -> bool:
        """Whether the tree's digest of a data block can be believed."""
        return not self.unproven_among(range(data_block, data_block + 1))

    def unproven_among(self, blocks: range) -> int:
        """How many of some data blocks the tree says nothing about."""
        first = bisect_right(self.unproven, blocks.start, key=lambda some: some.start)
        count = 0
        for index in range(max(0, first - 1), len(self.unproven)):
            some = self.unproven[index]
            if some.start >= blocks.stop:
                break
            count += max(0, min(some.stop, blocks.stop) - max(some.start, blocks.start))
        return count


Report = Callable[[BrokenBlock], None]


def audit_tree(params: VerityParams, root_digest: bytes, report: Report) -> Steps[TreeAudit]:
    """Look at every hash block whose parent is proven, from the root down.

    Asks for bytes of device 0, which is the payload: superblock, padding, tree.

    Args:
        params: shape of the tree.
        root_digest: trusted, of the tree's algorithm.
        report: told of each block that is broken.
    """
    shape = geometry(params)
    audit = TreeAudit()
    unproven: list[range] = []
    for level in range(len(shape.levels) - 1, -1, -1):
        broken = yield from _audit_level(params, shape, root_digest, level, unproven, report)
        audit.blocks += shape.levels[level].blocks - sum(map(len, unproven))
        unproven = _children(params, shape, level, _merged([*unproven, *broken]))
    audit.unproven = unproven
    return audit


def _audit_level(
    params: VerityParams,
    shape: Geometry,
    root_digest: bytes,
    level: int,
    unproven: list[range],
    report: Report,
) -> Steps[list[range]]:
    """The broken blocks of one level among those that are not ``unproven`` anyway."""
    size = shape.block_size_bytes
    block_hash = params.hasher()
    step = params.digest_size_bytes
    broken: list[range] = []
    for blocks in _gaps(unproven, shape.levels[level].blocks):
        at_once = max(1, PIECE_BYTES // size)
        for first in range(blocks.start, blocks.stop, at_once):
            count = min(at_once, blocks.stop - first)
            start = (shape.levels[level].first_block + first) * size
            data = memoryview((yield Need(0, start, count * size)))
            found = [block_hash(data[n * size : (n + 1) * size]) for n in range(count)]
            if level + 1 == len(shape.levels):
                wanted = root_digest
            else:
                wanted = yield Need(0, *shape.digests(level + 1, first, count, step))
            for n, digest in enumerate(found):
                promised = wanted[n * step : (n + 1) * step]
                if digest != promised:
                    _append(broken, first + n)
                    where = ByteRange(start + n * size, size)
                    report(BrokenBlock(level, first + n, where, promised, digest))
    return broken


def _children(
    params: VerityParams, shape: Geometry, level: int, blocks: list[range]
) -> list[range]:
    """The blocks below some blocks of a level."""
    fan_out = params.digests_per_block
    below = shape.levels[level - 1].blocks if level else params.data_blocks
    return [
        range(some.start * fan_out, min(some.stop * fan_out, below))
        for some in blocks
        if some.start * fan_out < below
    ]


def _append(ranges: list[range], number: int) -> None:
    """Add a number that is larger than all that are there."""
    if ranges and ranges[-1].stop == number:
        ranges[-1] = range(ranges[-1].start, number + 1)
    else:
        ranges.append(range(number, number + 1))


def _merged(ranges: list[range]) -> list[range]:
    """The same in order, neighbours joined; none overlap."""
    merged: list[range] = []
    for one in sorted(ranges, key=lambda one: one.start):
        if merged and merged[-1].stop == one.start:
            merged[-1] = range(merged[-1].start, one.stop)
        else:
            merged.append(one)
    return merged


def _gaps(ranges: list[range], end: int) -> list[range]:
    """What lies between ranges, up to ``end``."""
    gaps = []
    position = 0
    for one in [*ranges, range(end, end)]:
        if position < one.start:
            gaps.append(range(position, one.start))
        position = one.stop
    return gaps
