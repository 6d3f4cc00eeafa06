"""The beginning of a blob, fetched at the same time as its chunk table.

An image's superblock and root directory lie in its first chunk, and where that ends in the blob
only the table says: so opening a layer would cost two round trips, one after the other. But the
first chunk begins where the blob begins. So some bytes from there come along with the table, in
a request beside it, or in the same one where the blob is short. Like all bytes of a blob they are
UNVERIFIED: they go the way of others, as the answers to requests that need not be sent.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

from lazyfs.errors import SourceUnavailableError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.together import all_of
from lazyfs.layer.turns import Turns
from lazyfs.model import ByteRange
from lazyfs.seekable.pointers import Pointers

LARGEST_BYTES = 128 << 10
"""Of the beginning of one blob."""

SMALLEST_BYTES = 8 << 10
"""... even where there are many layers."""

ALL_LAYERS_BYTES = 1 << 20
"""Of the beginnings of all blobs of an image, about."""

BRIDGE_BYTES = 16 << 10
"""So many bytes between the beginning and the table are fetched too: cheaper than a request."""

ENTRY_BYTES = 72
"""What a chunk takes in the table of containerd's layout; other tables have smaller entries."""


def beginning(pointers: Pointers, layers: int) -> int:
    """Bytes of a blob to fetch along with its table: about one chunk, as far as can be told.

    Args:
        pointers: of the layer.
        layers: how many are opened together.
    """
    if pointers.table is None:
        return 0
    chunks = max(1, pointers.table.where.length // ENTRY_BYTES)
    share = max(SMALLEST_BYTES, min(LARGEST_BYTES, ALL_LAYERS_BYTES // layers))
    return min(pointers.chunks_end, share, -(-pointers.chunks_end // chunks))


class OpeningSource:
    """A ``BlobSource`` whose beginning comes along when the first other range is fetched."""

    def __init__(self, source: BlobSource, along_bytes: int, turns: Turns) -> None:
        """Fetch ``along_bytes`` of the beginning of ``source`` along with the first range.

        The line of ``turns`` is measured by that, so that it is known when readers come.
        """
        self._source = source
        self._turns = turns
        self._along = ByteRange(0, along_bytes)
        self._beginning = b""

    @property
    def size_bytes(self) -> int:
        """As ``BlobSource.size_bytes``."""
        return self._source.size_bytes

    @property
    def origin(self) -> str:
        """As ``BlobSource.origin``."""
        return self._source.origin

    @property
    def ranges_at_once(self) -> int:
        """As ``BlobSource.ranges_at_once``."""
        return self._source.ranges_at_once

    @property
    def beginning_bytes(self) -> int:
        """How much of the beginning is there now."""
        return len(self._beginning)

    async def fetch(self, where: ByteRange) -> bytes:
        """As ``BlobSource.fetch``: UNVERIFIED bytes.

        Raises:
            SourceUnavailableError: ``where`` cannot be had; about the beginning nobody is told.
        """
        along, self._along = self._along, ByteRange(0, 0)
        if not along.length:
            return await self._measured(where)
        if where.offset - along.end <= BRIDGE_BYTES:
            data = await self._measured(ByteRange(0, where.end))
            self._beginning = data[: where.offset]
            return data[where.offset :]
        fetched, _ = await all_of(
            [partial(self._measured, where), partial(self._fetch_beginning, along)]
        )
        return fetched

    async def _measured(self, where: ByteRange) -> bytes:
        self._turns.asked(where.length)
        with self._turns.answer(where.length) as answer:
            async with (
                self._source.stream(where) as stream,
                aclosing(answer.counted(stream)) as counted,
            ):
                return b"".join([data async for data in counted])

    async def _fetch_beginning(self, along: ByteRange) -> bytes:
        try:
            self._beginning = await self._measured(along)
        except SourceUnavailableError:
            self._beginning = b""  # who needs it asks again, and learns why
        return b""

    @asynccontextmanager
    async def stream(self, *ranges: ByteRange) -> AsyncIterator[AsyncIterator[bytes]]:
        """As ``BlobSource.stream``; what is there of the beginning is not asked for again.

        Raises:
            SourceUnavailableError: on opening or while reading.
        """
        there = b""
        rest: tuple[ByteRange, ...] = ()
        for number, where in enumerate(ranges, 1):
            data = self._beginning[where.offset : where.end]
            there += data
            if len(data) < where.length:
                missing = ByteRange(where.offset + len(data), where.length - len(data))
                rest = (missing, *ranges[number:])
                break
        if not there:
            async with self._source.stream(*ranges) as pieces:
                yield pieces
            return
        async with aclosing(self._from(there, rest)) as joined:
            yield joined

    async def _from(self, there: bytes, rest: Sequence[ByteRange]) -> AsyncGenerator[bytes, None]:
        yield there
        if rest:
            async with self._source.stream(*rest) as pieces:
                async for piece in pieces:
                    yield piece

    def distrust(self, where: ByteRange) -> str:
        """As ``BlobSource.distrust``; all of the beginning is asked for again."""
        self.forget()
        return self._source.distrust(where)

    def forget(self) -> None:
        """The layer is open: keep the beginning no longer."""
        self._beginning = b""
