"""Where file data lie in the image: as they were spooled, or some of them in front of the rest."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class BlockSpan(NamedTuple):
    """Neighbouring blocks."""

    first: int
    length: int

    @property
    def end(self) -> int:
        """The first block behind them."""
        return self.first + self.length


class DataOrder:
    """Spans of the spool in the order of the image: those of the front, then all others as spooled.

    Blocks count from the start of the spool, or of the file data in the image.
    """

    def __init__(self, front: Sequence[BlockSpan], blocks: int) -> None:
        """Order ``blocks`` blocks; the spans of ``front`` are of the spool, and do not overlap."""
        spans = [*front, *_complement(sorted(front), blocks)]
        self.front_blocks = sum(span.length for span in front)
        self._image = array("Q")
        self._spool = array("Q")
        place = 0
        for span in spans:
            self._image.append(place)
            self._spool.append(span.first)
            place += span.length
        self._blocks = blocks
        by_spool = sorted(range(len(spans)), key=self._spool.__getitem__)
        self._sorted_spool = array("Q", (self._spool[index] for index in by_spool))
        self._sorted_image = array("Q", (self._image[index] for index in by_spool))

    def place(self, block: int) -> int:
        """Where a block of the spool lies in the image."""
        index = bisect_right(self._sorted_spool, block) - 1
        return (
            self._sorted_image[index] + block - self._sorted_spool[index] if index >= 0 else block
        )

    def spooled(self, first: int, length: int) -> Iterator[BlockSpan]:
        """The spans of the spool that are some neighbouring blocks of the image, in order."""
        index = bisect_right(self._image, first) - 1
        end = first + length
        while first < end:
            following = self._image[index + 1] if index + 1 < len(self._image) else self._blocks
            step = min(end, following) - first
            yield BlockSpan(self._spool[index] + first - self._image[index], step)
            first += step
            index += 1

    def placed(self, first: int, length: int) -> Iterator[BlockSpan]:
        """The spans of the image that some neighbouring blocks of the spool are."""
        index = bisect_right(self._sorted_spool, first) - 1
        end = first + length
        spool = self._sorted_spool
        while first < end:
            following = spool[index + 1] if index + 1 < len(spool) else self._blocks
            step = min(end, following) - first
            yield BlockSpan(self._sorted_image[index] + first - spool[index], step)
            first += step
            index += 1


def _complement(spans: Sequence[BlockSpan], blocks: int) -> Iterator[BlockSpan]:
    """What sorted spans leave of ``blocks`` blocks."""
    start = 0
    for span in spans:
        if span.first < start or span.end > blocks:
            raise AssertionError(f"{span} after block {start} of {blocks}")
        if start < span.first:
            yield BlockSpan(start, span.first - start)
        start = span.end
    if start < blocks:
        yield BlockSpan(start, blocks - start)
