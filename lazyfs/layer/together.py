"""Several tasks' results as if there were one task."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")


async def all_of(makers: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results of all makers, made side by side; the first error ends the others.

    Raises:
        Whatever the first one that fails raises, not in a group.
    """
    results: dict[int, T] = {}
    failures: list[Exception] = []

    async def run(number: int, make: Callable[[], Awaitable[T]]) -> None:
        try:
            results[number] = await make()
        except Exception as error:  # noqa: BLE001 - raised again below, without a group
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number, make in enumerate(makers):
            nursery.start_soon(run, number, make)
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(makers))]
