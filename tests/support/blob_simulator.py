"""A blob somewhere else, in memory: logs what is asked for, and fails as it is told to."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import trio

from lazyfs.errors import SourceUnavailableError
from lazyfs.model import ByteRange

PIECE_BYTES = 5000


class BlobSimulator:
    """A ``BlobSource``."""

    def __init__(self, data: bytes, origin: str = "registry.test") -> None:
        self.data = data
        self.origin = origin
        self.requests: list[ByteRange] = []
        """What was asked for, in order; of several ranges by one request each."""
        self.ranges_at_once = 1
        self.together: list[int] = []
        """Ranges of each request."""
        self.sends_several = True
        """Whether a request for more than one range is answered."""
        self.cancelled = 0
        """Requests that were given up by who asked."""
        self.down = False
        """Whether every request fails."""
        self.short_at: int | None = None
        """Offset at which streams end, without a word."""
        self.long_by = 0
        """Bytes that are sent beyond what was asked for."""
        self.stalled = trio.Event()
        """Set when somebody waits for a stalled stream."""
        self._stalls: list[tuple[int, int, trio.Event]] = []
        self._lies: list[_Lie] = []

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @property
    def fetched_bytes(self) -> int:
        return sum(where.length for where in self.requests)

    def lie(self, offset: int, times: int | None = None) -> "_Lie":
        """Send the byte at ``offset`` wrong: always, or as often as ``times``."""
        lie = _Lie(offset, times)
        self._lies.append(lie)
        return lie

    def be_honest(self) -> None:
        """Send the right bytes again."""
        self._lies.clear()

    def stall_at(self, offset: int = 0, *, requests_before: int = 0) -> Callable[[], None]:
        """Send nothing from ``offset`` on, until the returned function is called.

        Args:
            offset: in the blob.
            requests_before: how many are answered before.
        """
        gate = trio.Event()
        self._stalls.append((offset, len(self.requests) + requests_before, gate))
        self.stalled = trio.Event()
        return gate.set

    def forget(self) -> list[ByteRange]:
        """Empty the log; what was in it."""
        log, self.requests = self.requests, []
        return log

    async def fetch(self, where: ByteRange) -> bytes:
        async with self.stream(where) as pieces:
            data = b"".join([piece async for piece in pieces])
        if len(data) != where.length:
            raise SourceUnavailableError(f"{self.origin}: {len(data)} bytes of {where.length}")
        return data

    def distrust(self, where: ByteRange) -> str:
        return self.origin

    @asynccontextmanager
    async def stream(self, *ranges: ByteRange) -> AsyncIterator[AsyncIterator[bytes]]:
        assert 1 <= len(ranges) <= self.ranges_at_once
        for where in ranges:
            assert where.offset >= 0
            assert where.length >= 0
            assert where.end <= len(self.data), "asked for more than there is"
        self.together.append(len(ranges))
        self.requests += ranges
        try:
            await trio.lowlevel.checkpoint()
            if self.down:
                raise SourceUnavailableError(f"{self.origin}: connection refused")
            if len(ranges) > 1 and not self.sends_several:
                raise SourceUnavailableError(f"{self.origin}: one range only")
            pieces = self._ranges(ranges, len(self.requests))
            try:
                yield pieces
            finally:
                await pieces.aclose()
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def _ranges(self, ranges: Sequence[ByteRange], number: int):
        for where in ranges:
            async with aclosing(self._pieces(where, number)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _pieces(self, where: ByteRange, number: int):
        sent = bytearray(self.data[where.offset : where.end])
        for lie in self._lies:
            lie.apply(where, sent)
        end = where.end if self.short_at is None else min(where.end, self.short_at)
        for start in range(where.offset, end, PIECE_BYTES):
            await trio.lowlevel.checkpoint()
            for offset, before, gate in self._stalls:
                if number > before and start + PIECE_BYTES > offset and not gate.is_set():
                    self.stalled.set()
                    await gate.wait()
            if self.down:
                raise SourceUnavailableError(f"{self.origin}: connection reset")
            stop = min(start + PIECE_BYTES, end)
            yield bytes(sent[start - where.offset : stop - where.offset])
        if self.long_by:
            yield bytes(self.long_by)


class _Lie:
    """One wrong byte, told some times."""

    def __init__(self, offset: int, times: int | None) -> None:
        self._offset = offset
        self._times = times
        self.told = 0

    def apply(self, where: ByteRange, sent: bytearray) -> None:
        exhausted = self._times is not None and self.told >= self._times
        if where.offset <= self._offset < where.end and not exhausted:
            sent[self._offset - where.offset] ^= 0x20
            self.told += 1
