"""A blob at the end of a line of some delay and bandwidth, in virtual time.

Use it with trio's ``autojump_clock`` and ``tests.support.tick_registry.threads_at_once``: then
``trio.current_time()`` says how long it would take if this machine took no time at all.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from lazyfs.errors import SourceUnavailableError
from lazyfs.model import ByteRange
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_builder import Layer
from tests.support.layer_rig import Opened, Rig

PIECE_BYTES = 16 << 10


class SimulatedLine:
    """What all requests share."""

    def __init__(self, rtt_s: float, bits_per_s: float) -> None:
        self.rtt_s = rtt_s
        self.bytes_per_s = bits_per_s / 8
        self.connections = 0
        self._idle = 0
        self._free_at_s = 0.0

    async def carry(self, length: int) -> None:
        """Take the line's time for some bytes, behind those that have it already."""
        self._free_at_s = max(self._free_at_s, trio.current_time()) + length / self.bytes_per_s
        await trio.sleep_until(self._free_at_s)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        """A kept connection, or a new one: that takes a round trip."""
        if self._idle:
            self._idle -= 1
        else:
            self.connections += 1
            await trio.sleep(self.rtt_s)
        try:
            yield
        finally:
            self._idle += 1


class BlobOnLine(BlobSimulator):
    """A ``BlobSource`` whose bytes come over a line."""

    def __init__(self, data: bytes, line: SimulatedLine) -> None:
        super().__init__(data)
        self.line = line

    @asynccontextmanager
    async def stream(self, *ranges: ByteRange) -> AsyncIterator[AsyncIterator[bytes]]:
        self.together.append(len(ranges))
        self.requests += ranges
        async with self.line.connection():
            await trio.sleep(self.line.rtt_s)
            if self.down:
                raise SourceUnavailableError(f"{self.origin}: down")
            pieces = self._over_line(ranges)
            try:
                yield pieces
            finally:
                await pieces.aclose()

    async def _over_line(self, ranges: Sequence[ByteRange]):
        for where in ranges:
            for start in range(where.offset, where.end, PIECE_BYTES):
                stop = min(start + PIECE_BYTES, where.end)
                await self.line.carry(stop - start)
                yield self.data[start:stop]


async def open_on_line(
    rig: Rig, layer: Layer, rtt_ms: float, mbit: float
) -> tuple[Opened, BlobOnLine]:
    """A layer that was opened behind such a line, and its blob."""
    blob = BlobOnLine(layer.blob, SimulatedLine(rtt_ms / 1e3, mbit * 1e6))
    return await rig.open(layer, blob=blob), blob
