"""The tries of one operation: which host is asked next, after how long, and when to give up.

Hosts are asked in their order, each once, without a pause between them: a mirror that lacks or
breaks something costs one request. Only when all have failed is there a pause, which grows, and a
second round among those whose answer may change.
"""

import logging
import random
from collections import Counter
from collections.abc import Collection, Sequence

import trio

from registry.endpoint import Endpoint
from registry.errors import (
    ContentError,
    NoRangesError,
    ProtocolError,
    RegistryError,
    ResponseError,
    TransportError,
)
from registry.health import Rank
from registry.retry import RETRIED_STATUSES, RetryPolicy

log = logging.getLogger(__name__)

FIRST_CONTACT_TRIES = 5
"""Tries at a host that never worked yet: its name may be wrong, and nobody wants to wait then."""
PROTOCOL_TRIES = 3
WRONG_CONTENT_TRIES = 2


class Attempts:
    """One operation, tried until it works or the time is over."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        total_s: float,
        most_tries: int | None = None,
        *,
        writing: bool = False,
    ) -> None:
        """Ask ``endpoints`` (at least one) for at most ``total_s``, each ``most_tries`` times.

        When ``writing``, wrong content is nothing that the host has to answer for.
        """
        self._writing = writing
        self._endpoints = endpoints
        self._policy = RetryPolicy(total_s, attempts=None)
        self._most_tries = most_tries
        self._began = trio.current_time()
        self._rounds = 0
        self._tries: Counter[Endpoint] = Counter()
        self._asked: set[Endpoint] = set()
        """In this round."""
        self._hopeless: set[Endpoint] = set()
        self._errors: dict[Endpoint, RegistryError] = {}

    @property
    def ends_at(self) -> float:
        """When the time is over, on trio's clock."""
        return self._began + self._policy.budget_s

    def choose(self, avoid: Collection[Endpoint] = ()) -> Endpoint:
        """The host to ask now; those in ``avoid`` after all others."""
        chosen = self._next(avoid)
        chosen.health.chosen(trio.current_time())
        return chosen

    def _next(self, avoid: Collection[Endpoint] = ()) -> Endpoint:
        now = trio.current_time()
        left = [e for e in self._endpoints if e not in self._asked and e not in self._hopeless]
        return min(left, key=lambda e: (e in avoid, e.health.rank(now)))

    def second(self, first: Endpoint, avoid: Collection[Endpoint]) -> Endpoint:
        """Whom to ask beside ``first``, which is slow: another host that does well, or the same."""
        now = trio.current_time()
        for other in self._endpoints:
            asked = other in self._asked or other in self._hopeless or other in avoid
            if other is not first and not asked and other.health.rank(now) is Rank.USABLE:
                return other
        return first

    def succeeded(self, endpoint: Endpoint) -> None:
        """It gave what was asked for."""
        endpoint.budget.add_success()
        if endpoint.health.succeeded():
            extra = {"event": "host_recovered", "host": endpoint.name}
            log.warning("%s: works again", endpoint.name, extra=extra)

    def progressed(self) -> None:
        """Much of a long operation is done: begin to count anew."""
        self._began = trio.current_time()
        self._rounds = 0
        self._tries.clear()
        self._asked.clear()

    async def failed(self, endpoint: Endpoint, error: RegistryError) -> None:
        """It did not work there; return when another try may begin.

        Raises:
            RegistryError: what to tell: another try is no use, or the time is over.
        """
        if not (self._writing and isinstance(error, ContentError)):
            note_failure(endpoint, error)
        error.host = endpoint.name
        self._errors[endpoint] = error
        self._asked.add(endpoint)
        self._tries[endpoint] += 1
        if self._tries[endpoint] >= self._tries_allowed(endpoint, error):
            self._hopeless.add(endpoint)
        waiting = [e for e in self._endpoints if e not in self._hopeless]
        if not waiting:
            raise self._verdict()
        if all(e in self._asked for e in waiting):
            self._rounds += 1
            await self._pause(waiting)
            self._asked.clear()
        upcoming = self._next()
        if upcoming in self._errors:
            await self._wait_for_budget(upcoming)

    def expired(self, endpoint: Endpoint) -> RegistryError:
        """What to tell when the time is over while ``endpoint`` was asked."""
        # What went wrong before tells more than that the last try came too late.
        return self._errors.get(endpoint) or TransportError(
            f"{endpoint.name}: no complete answer within {self._policy.budget_s:g} s"
        )

    def _tries_allowed(self, endpoint: Endpoint, error: RegistryError) -> float:
        allowed: float = 1
        if isinstance(error, ProtocolError):
            allowed = PROTOCOL_TRIES
        elif isinstance(error, ContentError):
            final = self._writing or isinstance(error, NoRangesError)
            allowed = 1 if final else WRONG_CONTENT_TRIES
        elif may_pass(error):
            allowed = float("inf") if endpoint.health.worked else FIRST_CONTACT_TRIES
        return min(allowed, self._most_tries or allowed)

    async def _pause(self, waiting: Sequence[Endpoint]) -> None:
        wanted_s = [_retry_after(self._errors[e]) for e in waiting]
        # The first of them that wants to be asked again is asked again.
        shortest_s = None if None in wanted_s else min(s for s in wanted_s if s is not None)
        jitter = random.random()  # noqa: S311 - spreads clients, keeps no secret
        elapsed_s = trio.current_time() - self._began
        delay_s = self._policy.delay_s(self._rounds, elapsed_s, shortest_s, jitter)
        if delay_s is None:
            raise self._verdict()
        log.debug("%s; trying again in %.1f s", self._verdict(), delay_s)
        await trio.sleep(delay_s)

    async def _wait_for_budget(self, endpoint: Endpoint) -> None:
        """However many operations fail, a host gets second requests at a bounded rate only."""
        while wait_s := endpoint.budget.take(trio.current_time()):
            if trio.current_time() + wait_s > self.ends_at:
                raise self._verdict()
            await trio.sleep(wait_s)
        endpoint.health.retries += 1

    def _verdict(self) -> RegistryError:
        """What the registry itself said counts more than what its mirrors said."""
        own = [error for endpoint, error in self._errors.items() if not endpoint.is_mirror]
        verdict = own[0] if own else list(self._errors.values())[-1]
        verdict.attempts = self._tries.total()
        return verdict


def may_pass(error: RegistryError) -> bool:
    """Whether another try may end otherwise."""
    if isinstance(error, ResponseError):
        return error.status in RETRIED_STATUSES
    return isinstance(error, TransportError)


def note_failure(endpoint: Endpoint, error: RegistryError) -> None:
    """Keep in mind how a host failed, and tell people when that is news."""
    now = trio.current_time()
    if isinstance(error, NoRangesError):
        return
    if isinstance(error, ContentError):
        if endpoint.health.lied(now, str(error)):
            demoted = {"event": "host_demoted", "host": endpoint.name}
            message = "%s: gave a wrong answer, is asked last for now: %s"
            log.warning(message, endpoint.name, error, extra=demoted)
    elif may_pass(error) and endpoint.health.failed(now, str(error), _retry_after(error)):
        failing = {
            "event": "host_failing",
            "host": endpoint.name,
            "status": error.status if isinstance(error, ResponseError) else None,
        }
        log.warning("%s: keeps failing: %s", endpoint.name, error, extra=failing)


def _retry_after(error: RegistryError) -> float | None:
    return error.retry_after_s if isinstance(error, ResponseError) else None
