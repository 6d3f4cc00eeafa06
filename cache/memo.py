"""Bytes that are costly to make: made once however many ask, kept up to a limit."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

import trio


class _Making:
    """Somebody is making a result; those who wait look here when it is done."""

    __slots__ = ("done", "outcome")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: bytes | Exception | None = None


class Memo:
    """A bounded memory of made bytes, the least recently used going first.

    Between two checkpoints a task is alone: the dictionaries need no lock.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Keep at most ``limit_bytes``, but always the newest result."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._making: dict[Hashable, _Making] = {}

    def get(self, key: Hashable) -> bytes | None:
        """What is kept under ``key``."""
        data = self._kept.get(key)
        if data is not None:
            self._kept.move_to_end(key)
        return data

    async def get_or_make(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """What is kept under ``key``; made by the first who asks, awaited by the others.

        Raises:
            Whatever ``make`` raises, to all who wait for it; who asks later tries again.

        Cancelled: when the maker is cancelled, a waiter takes over.
        """
        while (data := self.get(key)) is None:
            making = self._making.get(key)
            if making is None:
                return await self._make(key, make)
            await making.done.wait()
            if isinstance(making.outcome, Exception):
                raise making.outcome
            if making.outcome is not None:
                return making.outcome
        return data

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        making = self._making[key] = _Making()
        try:
            data = making.outcome = await make()
        except Exception as error:
            making.outcome = error
            raise
        finally:
            del self._making[key]
            making.done.set()
        self._kept[key] = data
        self._used_bytes += len(data)
        while self._used_bytes > self._limit_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._used_bytes -= len(dropped)
        return data
