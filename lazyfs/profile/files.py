"""From blocks that were read to the files whose data they are."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lazyfs.profile.document import BLOCK_BYTES, MAX_FILE_RANGES, BlockRun, FileRange


class Placed(NamedTuple):
    """Bytes of a file, and where they are stored."""

    file: FileRange
    layer: int
    """Whose image has them: index into the profile's layers."""
    address: int
    length: int
    """In bytes of that image. Where it differs from the file's, the bytes are compressed, and
    none can be had without the others."""


class FilesOfBlocks:
    """Collects the parts of files that blocks hold; ``ranges`` gives them in the blocks' order."""

    def __init__(self, blocks: Sequence[BlockRun]) -> None:
        """Look for the files of ``blocks``, no block twice."""
        self._places: dict[int, list[tuple[int, int, int]]] = {}
        """By layer: first byte, end and rank of each run, by place."""
        for rank, run in enumerate(blocks):
            place = (run.first * BLOCK_BYTES, run.end * BLOCK_BYTES, rank)
            self._places.setdefault(run.layer, []).append(place)
        for places in self._places.values():
            places.sort()
        self._found: list[tuple[int, int, FileRange]] = []
        """Rank of the run, place in it, and what lies there."""

    def add(self, placed: Iterable[Placed]) -> None:
        """Take the parts of ``placed`` that are in the blocks."""
        for part in placed:
            places = self._places.get(part.layer, [])
            end = part.address + part.length
            index = max(0, bisect_right(places, (part.address, 0, 0)) - 1)
            while index < len(places) and places[index][0] < end:
                start, stop, rank = places[index]
                index += 1
                first, last = max(start, part.address), min(stop, end)
                if first >= last:
                    continue
                if part.length != part.file.length:
                    self._found.append((rank, first, part.file))
                    break
                offset = part.file.offset + first - part.address
                file = part.file._replace(offset=offset, length=last - first)
                self._found.append((rank, first, file))

    def ranges(self) -> tuple[FileRange, ...]:
        """What was found, in order of first use; neighbours that follow each other are one."""
        ranges: list[FileRange] = []
        for _, _, file in sorted(self._found, key=lambda found: found[:2]):
            last = ranges[-1] if ranges else None
            if (
                last is not None
                and (last.layer, last.path) == (file.layer, file.path)
                and last.offset + last.length == file.offset
            ):
                ranges[-1] = last._replace(length=last.length + file.length)
            else:
                ranges.append(file)
        return tuple(ranges[:MAX_FILE_RANGES])
