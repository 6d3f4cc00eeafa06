"""Small reads through the page memory; the common part of all verified readers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

import trio

from lazyfs.errors import TruncatedRecordError
from lazyfs.layer.ahead import LayerAhead
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.guess import LayerGuesses
from lazyfs.layer.pages import PAGE_BYTES, PageMemory
from lazyfs.model import ByteRange

SMALL_BYTES = PAGE_BYTES
"""Reads up to this length go through the page memory; longer ones are file data."""


class PagedReader(ABC):
    """A ``VerifiedReader`` whose small reads are remembered."""

    def __init__(
        self, number: int, size_bytes: int, pages: PageMemory, counters: LayerCounters
    ) -> None:
        """Serve ``size_bytes`` bytes as layer ``number`` of ``pages``."""
        self._number = number
        self._pages = pages
        self.size_bytes = size_bytes
        self.counters = counters
        self.ahead: LayerAhead | None = None
        """Fetches what sequential readers of longer parts will want next."""
        self.guesses: LayerGuesses | None = None
        """Guesses what other readers will."""
        self.on_read_once: Callable[[int, bytes], None] | None = None
        """Is told what ``read_once`` gives, and from which offset on."""

    def proven_nowait(self, offset: int, length: int) -> bytes | None:
        """As ``read_proven`` where that needs no wait and little work; else None."""
        return None

    @abstractmethod
    async def read_proven(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` proven bytes; the range is inside the image and not empty."""

    @property
    def ranges_at_once(self) -> int:
        """See ``BlobSource.ranges_at_once``."""
        return 1

    def has_gaps(self) -> bool:
        """Whether parts of the image are fetched when they are wanted, and some are not here yet.

        Quick: looks at a few places.
        """
        return False

    def begin(self, offset: int, length: int, *, background: bool = False) -> None:
        """Begin to fetch what a range inside the image needs and the store lacks; returns at once.

        Nothing happens where the image is not fetched in parts.

        Args:
            offset: of the range.
            length: likewise.
            background: nobody waits for it.
        """
        return

    async def have(self, ranges: Sequence[ByteRange]) -> None:
        """Have in the store what ranges inside the image need, where that is fetched in parts.

        They are asked for together, so that neighbours among them come by one request.

        Raises:
            VerificationError, ImageFormatError, SourceUnavailableError: it cannot be had.
        """
        await trio.lowlevel.checkpoint()

    def announce(self, chunks: Collection[int]) -> None:
        """Know that some chunks come anyway, by somebody who knows what is wanted after them.

        Readers of them need no read-ahead, and who waits for one is not surprised.
        """
        if self.ahead is not None:
            self.ahead.coming = chunks

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """As ``read`` if the bytes are at hand, else None; never blocks.

        At hand is what the page memory has, and what the store has and can be proven at once.
        """
        if length > SMALL_BYTES:
            return self.read_once_nowait(offset, length)
        page, start = divmod(offset, PAGE_BYTES)
        if offset < 0 or length < 0 or start + length > PAGE_BYTES:
            return None
        data = self._pages.get(self._number, page)
        if data is not None:
            if start + length > len(data):
                return None
            self.counters.memory_bytes += length
            return data[start : start + length]
        size = min(PAGE_BYTES, self.size_bytes - page * PAGE_BYTES)
        if not 0 < length <= size - start:
            return None
        data = self._noted_nowait(page * PAGE_BYTES, size)
        if data is None:
            return None
        self._pages.put(self._number, page, data)
        self.counters.read_bytes += length
        return data[start : start + length]

    def read_once_nowait(self, offset: int, length: int) -> bytes | None:
        """As ``read_once`` if the bytes are at hand, else None; never blocks."""
        if not 0 <= offset < offset + length <= self.size_bytes:
            return None
        data = self._noted_nowait(offset, length)
        if data is not None:
            if self.ahead is not None:
                self.ahead.used(offset, length)
            self.counters.read_bytes += length
        return data

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` VERIFIED bytes at ``offset``.

        Raises:
            TruncatedRecordError: the range passes the end of the image.
            VerificationError, SourceUnavailableError: the bytes cannot be had or proven.

        Cancelled: a fetch that was begun goes on for other readers.
        """
        if length > SMALL_BYTES:
            return await self.read_once(offset, length)
        self._check_range(offset, length)
        if length == 0:
            return b""
        self.counters.read_bytes += length
        first = offset // PAGE_BYTES
        last = (offset + length - 1) // PAGE_BYTES
        data = b"".join([await self._page(page) for page in range(first, last + 1)])
        start = offset - first * PAGE_BYTES
        return data[start : start + length]

    async def read_once(self, offset: int, length: int) -> bytes:
        """As ``read``, past the memory: for who remembers what it gets, or wants it only once.

        Raises:
            As for ``read``.

        Cancelled: as for ``read``.
        """
        self._check_range(offset, length)
        if length == 0:
            return b""
        self.counters.read_bytes += length
        if self.ahead is not None:
            self.ahead.used(offset, length)
        data = await self._noted(offset, length)
        if self.on_read_once is not None:
            self.on_read_once(offset, data)
        return data

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise TruncatedRecordError(
                f"{length} bytes at offset {offset} pass the end of an image of "
                f"{self.size_bytes} bytes"
            )

    async def _page(self, page: int) -> bytes:
        data = self._pages.get(self._number, page)
        if data is None:
            start = page * PAGE_BYTES
            data = await self._noted(start, min(PAGE_BYTES, self.size_bytes - start))
            self._pages.put(self._number, page, data)
        return data

    def _noted_nowait(self, offset: int, length: int) -> bytes | None:
        """As ``_noted`` where that needs no wait and little work; else None, and nothing noted."""
        data = self.proven_nowait(offset, length)
        if data is not None:
            self._note(offset, length)
        return data

    async def _noted(self, offset: int, length: int) -> bytes:
        """Proven bytes for a reader; that he wanted them goes into the recording."""
        self._note(offset, length)
        return await self.read_proven(offset, length)

    def _note(self, offset: int, length: int) -> None:
        if self.counters.touched is not None:
            self.counters.touched.note(offset, length)
        if self.guesses is not None:
            self.guesses.used(offset, length)
