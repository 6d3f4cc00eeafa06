"""A second request when the first is slow: whoever answers first is listened to.

Only the wait for the head of an answer is run twice; the slower one is hung up on before its body.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Generic, TypeVar

import trio

from registry.attempts import note_failure
from registry.endpoint import Endpoint
from registry.errors import RegistryError, TransportError

BUSY_DELAYS = 4
"""So many times as long an answer may take while others of the same host come in: it stands behind
them on the line, and one more would only come behind it."""

T = TypeVar("T")
Opener = Callable[[Endpoint], AbstractAsyncContextManager[T]]


@asynccontextmanager
async def hedged(
    first: Endpoint, second: Callable[[], Endpoint], delay_s: float, open_at: Opener[T]
) -> AsyncIterator[tuple[Endpoint, T]]:
    """What ``open_at`` opens, at ``first`` or, if it takes longer than ``delay_s``, at ``second``.

    While other answers of ``first`` come in, it may take longer.

    Raises:
        RegistryError: that of ``first``; ``second``, if it was asked, has failed as well.
    """
    race = _Race(open_at)
    try:
        await race.run(first, second, delay_s)
        if race.winner is None:
            raise race.errors[first]
        yield race.winner
    finally:
        with trio.CancelScope(shield=True):
            await race.opened.aclose()


class _Race(Generic[T]):
    def __init__(self, open_at: Opener[T]) -> None:
        self._open_at = open_at
        self.winner: tuple[Endpoint, T] | None = None
        self.opened = AsyncExitStack()
        """What the winner must close."""
        self.errors: dict[Endpoint, RegistryError] = {}
        self._hedged = self._hedge_won = False

    async def run(self, first: Endpoint, second: Callable[[], Endpoint], delay_s: float) -> None:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._later, first, second, delay_s, nursery.cancel_scope)
            await self._enter(first, nursery.cancel_scope)
            if not self._hedged:
                nursery.cancel_scope.cancel()
        if self.winner is not None and self._hedge_won:
            _note_slow(first, self.winner[0], trio.current_time() - began)

    async def _later(
        self,
        first: Endpoint,
        second: Callable[[], Endpoint],
        delay_s: float,
        everything: trio.CancelScope,
    ) -> None:
        for _ in range(BUSY_DELAYS):
            received_bytes = first.wire.received_bytes
            await trio.sleep(delay_s)
            if first.wire.received_bytes == received_bytes:
                break
        self._hedged = True
        endpoint = second()
        endpoint.health.hedged(trio.current_time())
        await self._enter(endpoint, everything, hedge=True)

    async def _enter(
        self, endpoint: Endpoint, everything: trio.CancelScope, *, hedge: bool = False
    ) -> None:
        async with AsyncExitStack() as stack:
            try:
                value = await stack.enter_async_context(self._open_at(endpoint))
            except RegistryError as error:
                if hedge:
                    note_failure(endpoint, error)
                else:
                    self.errors[endpoint] = error
                return
            if self.winner is None:
                self._hedge_won = hedge
                self.winner = (endpoint, value)
                self.opened = stack.pop_all()
                everything.cancel()


def _note_slow(slow: Endpoint, quick: Endpoint, waited_s: float) -> None:
    """Remember who lost: nothing else tells of a host that never answers."""
    # It would have taken longer still; else it would never come to be known as slow.
    slow.health.first_byte(waited_s)
    if quick is not slow:
        problem = f"{slow.name}: no answer within {waited_s:.2f} s, {quick.name} was quicker"
        note_failure(slow, TransportError(problem))
