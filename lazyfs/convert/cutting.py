"""Where the chunks of an image begin.

Chunks of one size suit reading. Where several images share files, chunks that begin with files
are shared too: the same file gives the same chunk, wherever it lies in an image. ``FileBorders``
chooses such borders while the files come; see decision note 7.
"""

import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from lazyfs.model import ByteRange

LARGE_BYTES = 128 << 10
"""A file from this size on has chunks of its own."""

GROUP_BYTES = 1 << 20
"""Smaller files are put together up to about this size."""

MARK_EVERY = 32
"""Of the paths of small files, one in so many begins a new group."""


def cut(
    size_bytes: int,
    borders: Iterable[int],
    chunk_size_bytes: int,
    block_size_bytes: int = 1,
    start: int = 0,
) -> Iterator[ByteRange]:
    """Cut an image at its borders, and what lies between them into chunks of a size.

    Args:
        size_bytes: of the image.
        borders: increasing, inside the image; 0 may be among them.
        chunk_size_bytes: of the largest chunk.
        block_size_bytes: a border inside a block moves to the end of the block.
        start: what lies before it is left out.
    """
    rounded = (-(-border // block_size_bytes) * block_size_bytes for border in borders)
    for border in chain(rounded, (size_bytes,)):
        end = min(border, size_bytes)
        while start < end:
            length = min(chunk_size_bytes, end - start)
            yield ByteRange(start, length)
            start += length


class EarlyCut:
    """Cuts file data into chunks while they come, before the metadata in front of them are known.

    The chunks are those that ``cut`` gives for the finished image, if that begins a chunk with
    its file data.
    """

    def __init__(
        self, chunk_size_bytes: int, after_bytes: int = 0, borders: "FileBorders | None" = None
    ) -> None:
        """Cut into chunks of that size, and at borders.

        Args:
            chunk_size_bytes: of the largest chunk.
            after_bytes: as long as there are fewer data, no chunk is certain.
            borders: that grow with the data.
        """
        self._chunk_size_bytes = chunk_size_bytes
        self._after_bytes = after_bytes
        self._borders = borders
        self._seen = 0
        self._start = 0

    def take(self, end: int) -> list[ByteRange]:
        """The chunks that have become certain, relative to the beginning of the data.

        Args:
            end: data up to there have come, and all borders up to there are known.
        """
        found: list[ByteRange] = []
        if end < self._after_bytes:
            return found
        for border in self._borders.borders()[self._seen :] if self._borders is not None else ():
            self._seen += 1
            found += cut(border, (), self._chunk_size_bytes, start=self._start)
            self._start = border
        while self._start + self._chunk_size_bytes <= end:
            found.append(ByteRange(self._start, self._chunk_size_bytes))
            self._start += self._chunk_size_bytes
        return found


class FileBorders:
    """Chooses borders at the beginning of files.

    A large file begins a chunk and ends one. A small one begins a chunk if its path is marked
    (by a hash of the path: content does not matter, so a changed file moves no border), or if
    the group before it is full, or if a large file comes before it.
    """

    def __init__(self) -> None:
        """Begin without any border."""
        self._borders = array("Q")

    def add(self, path: bytes, offset: int, size_bytes: int) -> None:
        """Take the next file, behind the files before it.

        Args:
            path: of the file; how it is written does not matter (``./a``, ``/a``).
            offset: where its data begin.
            size_bytes: that they take.
        """
        if not size_bytes or (self._borders and offset < self._borders[-1]):
            return
        large = size_bytes >= LARGE_BYTES
        group = offset + size_bytes - (self._borders[-1] if self._borders else offset)
        if large or not self._borders or group > GROUP_BYTES or _is_marked(path):
            self._mark(offset)
        if large:
            self._mark(offset + size_bytes)

    def borders(self) -> Sequence[int]:
        """The borders so far, increasing."""
        return self._borders

    def _mark(self, offset: int) -> None:
        if not self._borders or self._borders[-1] != offset:
            self._borders.append(offset)


def _is_marked(path: bytes) -> bool:
    plain = b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
    return zlib.crc32(plain) % MARK_EVERY == 0
