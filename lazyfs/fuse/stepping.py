"""Running a coroutine in the task that is there, and noticing when it begins to wait."""

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def until_it_waits(
    coroutine: Coroutine[Any, Any, T], on_wait: Callable[[], None]
) -> Generator[Any, Any, T]:
    """Await ``coroutine``, and call ``on_wait`` if it does not end at once.

    Most requests are answered from memory without waiting for anything. These need no task of
    their own; who cares for new requests meanwhile is to be settled only if one waits.

    Everything that the coroutine says to trio is handed on, both ways: it runs in this task.
    """
    try:
        said = coroutine.send(None)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
    try:
        on_wait()
        while True:
            try:
                heard = yield said
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                said = coroutine.throw(error)
            else:
                said = coroutine.send(heard)
    except StopIteration as stop:
        answer = stop.value
        return answer
