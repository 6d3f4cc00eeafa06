"""A limit on the bytes that tasks hold in memory together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class ByteBudget:
    """Bytes to be had by who may hold them, in the order of asking."""

    def __init__(self, limit_bytes: int) -> None:
        """Hand out ``limit_bytes`` at most."""
        self._limit_bytes = limit_bytes
        self._free_bytes = limit_bytes
        self._turn = trio.StrictFIFOLock()
        self._returned = trio.Event()

    async def take(self, count_bytes: int) -> int:
        """Wait until that much is free; whoever wants more than all gets all.

        Returns:
            What to give back.
        """
        count_bytes = min(count_bytes, self._limit_bytes)
        async with self._turn:
            while self._free_bytes < count_bytes:
                self._returned = trio.Event()
                await self._returned.wait()
            self._free_bytes -= count_bytes
        return count_bytes

    def give_back(self, count_bytes: int) -> None:
        """Return what was taken."""
        self._free_bytes += count_bytes
        self._returned.set()

    @asynccontextmanager
    async def held(self, count_bytes: int) -> AsyncIterator[None]:
        """Hold that much for the time of the block."""
        taken = await self.take(count_bytes)
        try:
            yield
        finally:
            self.give_back(taken)
