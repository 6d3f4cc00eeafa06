"""Ctrl-C that arrives at a place where work can be given up.

By default SIGINT raises wherever the code happens to be: between the making of a coroutine and its
first step, or while a file is being closed. Here it cancels, so that everything is left in order.
"""

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

Result = TypeVar("Result")


def run_until_interrupted(work: Callable[..., Awaitable[Result]], *args: object) -> Result:
    """``trio.run``, for commands that end with Ctrl-C; a second one does not wait any more.

    Raises:
        KeyboardInterrupt: there was one.
        Whatever ``work`` raises.
    """
    return trio.run(_watched, work, args)


async def _watched(work: Callable[..., Awaitable[Result]], args: tuple[object, ...]) -> Result:
    results: list[Result] = []
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT) as signals:

            async def watch() -> None:
                async for _ in signals:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            results.append(await work(*args))
            nursery.cancel_scope.cancel()
    if not results:
        raise KeyboardInterrupt
    return results[0]
