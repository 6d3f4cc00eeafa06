"""Read-ahead of one layer: from the ranges that are read to the chunks that are fetched."""

from collections.abc import Callable, Container

from lazyfs.layer.line import Line
from lazyfs.layer.readahead import ReadAhead
from lazyfs.seekable.chunktable import ChunkTable


class LayerAhead:
    """Begins to fetch chunks that sequential readers will want next."""

    def __init__(
        self,
        table: ChunkTable,
        image_size_bytes: int,
        line: Line,
        begin: Callable[[int, int], None],
    ) -> None:
        """Fetch by ``begin(offset, length)`` what lies in ``table``, as far as ``line`` asks."""
        self._table = table
        self._size_bytes = image_size_bytes
        self._line = line
        self._begin = begin
        self._readers = ReadAhead()
        self.coming: Container[int] = ()
        """Chunks that are fetched anyway, by somebody who knows what is wanted after them."""
        self._largest = max((table.chunk(0).length, 1)) if len(table) else 1

    def used(self, offset: int, length: int) -> None:
        """A range of the image is read; returns at once.

        Only chunks that lie wholly in the window are fetched, so that a large chunk is not
        fetched because of a small read before it.
        """
        most = max(self._line.ahead_bytes, 2 * self._largest)
        found = self._readers.used(offset, length, most)
        if found is None or not found[1].length or self._table.index_at(offset) in self.coming:
            return
        reader, window = found
        stop = window.end if window.end < self._size_bytes else self._table.content_size_bytes
        start = at = window.offset
        while at < stop and at < self._size_bytes:
            chunk = self._table.chunk(self._table.index_at(at))
            if chunk.offset < at and at == start:
                start = at = chunk.end  # whoever reads its beginning has it
                continue
            if chunk.end > stop:
                break
            at = chunk.end
        reader.ahead = max(reader.ahead, at)
        end = min(at, self._size_bytes)
        if end > start:
            self._begin(start, end - start)
