"""Bytes that are costly to make: made once however many ask, kept up to a limit."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

import trio


class Memo:
    """A bounded memory of made bytes, the least recently used going first.

    Between two checkpoints a task is alone: the dictionaries need no lock.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Keep at most ``limit_bytes``, but always the newest result."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._making: dict[Hashable, trio.Event] = {}

    def get(self, key: Hashable) -> bytes | None:
        """What is kept under ``key``."""
        data = self._kept.get(key)
        if data is not None:
            self._kept.move_to_end(key)
        return data

    async def get_or_make(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """What is kept under ``key``; made by the first who asks, awaited by the others.

        Raises:
            Whatever ``make`` raises, to the one who made; the others then try themselves.

        Cancelled: when the maker is cancelled, a waiter takes over.
        """
        while (data := self.get(key)) is None:
            event = self._making.get(key)
            if event is None:
                return await self._make(key, make)
            await event.wait()
        return data

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        event = self._making[key] = trio.Event()
        try:
            data = await make()
        finally:
            del self._making[key]
            event.set()
        self._kept[key] = data
        self._used_bytes += len(data)
        while self._used_bytes > self._limit_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._used_bytes -= len(dropped)
        return data
