"""What is measured, in which order, and about how long it takes. Pure."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.shaper import Line

OURS = ("fuse", "fuse+profile", "hot+profile", "kernel", "kernel+profile")
BARE = ("fuse-bare", "kernel-bare")
"""Ours without anything that is fetched ahead; only where they are asked for."""
FULL_PULLS = ("pull-unpack", "pull-erofs")
SLOW_MBIT = 10
SLOW_ROUNDS = 1
"""So often only, unless it is asked for, over lines of ``SLOW_MBIT``: the time is the line's."""

TURN_S = 2.5
"""What each start of a lazy contender costs besides the line: mounts, programs, taking down."""
UNPACK_BYTES_PER_S = 40e6
"""Of compressed tar, on a machine of today."""
LAZY_SHARE = 0.3
"""Of an image that a lazy workload fetches, roughly."""


class Cell(NamedTuple):
    """A kind of line."""

    rtt_ms: float
    mbit: float

    def __str__(self) -> str:
        return f"{self.rtt_ms:g}ms/{self.mbit:g}Mbit"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """A cell from what ``str`` makes of it.

        Raises:
            ValueError: it is nothing of the kind.
        """
        match = re.fullmatch(r"([\d.]+)ms/([\d.]+)Mbit", text)
        if not match:
            raise ValueError(f"{text!r} is not such as 5ms/100Mbit")
        return cls(float(match[1]), float(match[2]))

    @property
    def line(self) -> Line:
        """What the proxy is asked for."""
        return Line(self.rtt_ms / 1e3, self.mbit * 1e6)


CELLS = tuple(Cell(rtt, mbit) for mbit in (10, 100, 1000) for rtt in (0.5, 5, 50))
SHORT_CELLS = (Cell(5, 100), Cell(50, 100))


class Item(NamedTuple):
    """One contender with all workloads of an image, in one cell and round."""

    cell: Cell
    round: int
    image: str
    contender: str


def items(
    cells: Sequence[Cell],
    images: Sequence[str],
    contenders: Sequence[str],
    rounds: int,
    slow_rounds: int = SLOW_ROUNDS,
) -> Iterator[Item]:
    """All items, in order: in each round of a cell another contender begins."""
    for cell in cells:
        here = min(rounds, slow_rounds) if cell.mbit <= SLOW_MBIT else rounds
        for number in range(here):
            first = number % len(contenders)
            for image in images:
                for contender in (*contenders[first:], *contenders[:first]):
                    yield Item(cell, number, image, contender)


def estimate_s(item: Item, image_bytes: int, workloads: int) -> float:
    """About how long an item takes, in seconds."""
    line_s = image_bytes * 8 / (item.cell.mbit * 1e6)
    if item.contender in FULL_PULLS:
        return line_s + image_bytes / UNPACK_BYTES_PER_S + workloads * TURN_S
    return workloads * (line_s * LAZY_SHARE + TURN_S + 10 * item.cell.rtt_ms / 1e3)


def bound_s(cell: Cell, round_trips: int, profiled_bytes: float) -> float:
    """The time that a start cannot beat: its round trips, and its bytes over the line."""
    return round_trips * cell.rtt_ms / 1e3 + profiled_bytes * 8 / (cell.mbit * 1e6)
