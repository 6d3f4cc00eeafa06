"""What is known of a host from how it answered: whether to ask it, and how soon to ask twice.

Pure: the caller brings the time, in seconds on any clock that does not jump.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from registry.retry import TokenBucket

FIRST_SKIP_S = 1.0
LONGEST_SKIP_S = 60.0
"""A host that fails is skipped for so long if another can serve; doubled each time it fails."""
FAILURES_TO_TELL = 3
"""Failures in a row after which a host counts as failing for people."""
DISTRUST_S = 600.0
"""How long a host that gave wrong bytes is asked last."""

LATENCIES_KEPT = 64
LATENCIES_NEEDED = 8
SLOW_QUANTILE = 0.95
SLOW_FACTOR = 2.0
SHORTEST_HEDGE_S = 0.1
"""What a busy machine takes to notice an answer is no reason to fetch it twice."""
UNKNOWN_HEDGE_S = 2.0
"""When to ask twice as long as nothing is known."""
HEDGES_PER_REQUEST = 0.05
HEDGE_BURST = 10.0
FIRST_HEDGES = 2.0


class Rank(IntEnum):
    """In which order hosts are asked."""

    USABLE = 0
    FAILING = 1
    DISTRUSTED = 2


@dataclass(frozen=True, slots=True)
class HostStatus:
    """What a person wants to know of a host; holds no secret."""

    host: str
    role: str
    """``registry`` or ``mirror``."""
    state: str
    """``ok``, ``failing`` (not answering, or refusing), ``distrusted`` (sent wrong bytes)."""
    for_s: float
    """Seconds until it is asked as before; 0 when it is."""
    requests: int
    failures: int
    retries: int
    hedges: int
    """Second requests that were sent because the first was slow."""
    wrong_answers: int
    last_problem: str | None
    received_bytes: int = 0
    """Of the bodies of answers, from wherever the host sent us."""


class HostHealth:
    """How one host does."""

    def __init__(self, *, worked: bool = False) -> None:
        self.worked = worked
        """Whether it ever gave what was asked for."""
        self.requests = self.failures = self.retries = self.hedges = self.wrong_answers = 0
        self.last_problem: str | None = None
        self._failures_in_a_row = 0
        self._skip_until = 0.0
        self._distrusted_until = 0.0
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._slow_s = UNKNOWN_HEDGE_S
        self._hedge_tokens = TokenBucket(HEDGE_BURST, 0.0, FIRST_HEDGES)

    def rank(self, now: float) -> Rank:
        """Whether to ask it before others."""
        if now < self._distrusted_until:
            return Rank.DISTRUSTED
        return Rank.FAILING if now < self._skip_until else Rank.USABLE

    def chosen(self, now: float) -> None:
        """It is going to be asked. One that failed is tried by one request, not by all at once."""
        self.requests += 1
        self._hedge_tokens.add(HEDGES_PER_REQUEST)
        if self._failures_in_a_row:
            self._skip_until = now + self._skip_s()

    def first_byte(self, latency_s: float) -> None:
        """An answer began after so long (or would have begun even later)."""
        self._latencies.append(latency_s)
        count = len(self._latencies)
        # Sorted now and then only: it costs as much as the rest of this bookkeeping together.
        if count >= LATENCIES_NEEDED and (count < LATENCIES_KEPT or self.requests % 16 == 0):
            ordered = sorted(self._latencies)
            slow = ordered[int(SLOW_QUANTILE * (count - 1))]
            self._slow_s = max(SHORTEST_HEDGE_S, SLOW_FACTOR * slow)

    def succeeded(self) -> bool:
        """It gave what was asked for; whether that is news after it had failed."""
        told = self._failures_in_a_row >= FAILURES_TO_TELL
        self.worked = True
        self._failures_in_a_row = 0
        self._skip_until = 0.0
        return told

    def failed(self, now: float, problem: str, wanted_s: float | None = None) -> bool:
        """It did not answer, or refused for now; whether people are to be told.

        Args:
            now: the time.
            problem: for people.
            wanted_s: how long it asked to be left alone, if it did.
        """
        self.failures += 1
        self.last_problem = problem
        self._failures_in_a_row += 1
        skip_s = max(self._skip_s(), min(wanted_s or 0.0, LONGEST_SKIP_S))
        self._skip_until = now + skip_s
        return self._failures_in_a_row == FAILURES_TO_TELL

    def lied(self, now: float, problem: str) -> bool:
        """It gave wrong bytes; whether people are to be told."""
        self.wrong_answers += 1
        self.last_problem = problem
        news = now >= self._distrusted_until
        self._distrusted_until = now + DISTRUST_S
        return news

    def hedge_after_s(self, longest_s: float) -> float | None:
        """Seconds after which a second request may be sent; None: none may be sent now."""
        return None if self._hedge_tokens.level < 1.0 else min(self._slow_s, longest_s)

    def hedged(self, now: float) -> None:
        """A second request is going to be sent."""
        self.hedges += 1
        self._hedge_tokens.take(now)

    def status(self, host: str, role: str, now: float, received_bytes: int = 0) -> HostStatus:
        """A snapshot."""
        rank = self.rank(now)
        failing = self._failures_in_a_row >= FAILURES_TO_TELL
        state = {Rank.DISTRUSTED: "distrusted"}.get(rank, "failing" if failing else "ok")
        until = self._distrusted_until if rank is Rank.DISTRUSTED else self._skip_until
        return HostStatus(
            host=host,
            role=role,
            state=state,
            for_s=round(max(0.0, until - now), 1),
            requests=self.requests,
            failures=self.failures,
            retries=self.retries,
            hedges=self.hedges,
            wrong_answers=self.wrong_answers,
            last_problem=self.last_problem,
            received_bytes=received_bytes,
        )

    def _skip_s(self) -> float:
        return min(FIRST_SKIP_S * 2.0 ** min(self._failures_in_a_row - 1, 30), LONGEST_SKIP_S)
