"""Work done side by side in threads, its results taken in order."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Generic, TypeVar

import trio

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Slot(Generic[Result]):
    """A result that is being worked on."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.results: list[Result] = []


async def each(items: Iterable[Item]) -> AsyncGenerator[Item, None]:
    """Items that are there already, for ``map_in_order``."""
    for item in items:
        yield item


async def map_in_order(
    work: Callable[[Item], Result],
    items: AsyncGenerator[Item, None],
    take: Callable[[Result], Awaitable[None]],
    *,
    workers: trio.CapacityLimiter,
    ahead: int,
) -> None:
    """Run ``work`` on every item in worker threads and ``take`` the results in order.

    Args:
        work: runs in a thread.
        items: asked for as room comes; closed in the end.
        take: awaited for one result at a time.
        workers: bounds the threads, also over several calls.
        ahead: results, finished or not, that may wait for ``take``; bounds the memory.

    Raises:
        Whatever ``work`` and ``take`` raise (in an exception group); the rest is given up.
    """
    send, receive = trio.open_memory_channel[_Slot[Result]](ahead)

    async def run_one(slot: _Slot[Result], item: Item) -> None:
        slot.results.append(await trio.to_thread.run_sync(work, item, limiter=workers))
        slot.ready.set()

    async def start_all() -> None:
        async with send, aclosing(items):
            async for item in items:
                slot = _Slot[Result]()
                await send.send(slot)
                nursery.start_soon(run_one, slot, item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_all)
        async for slot in receive:
            await slot.ready.wait()
            await take(slot.results.pop())
