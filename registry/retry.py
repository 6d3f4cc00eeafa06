"""When to ask again, and after how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different the next time."""

WRONG_ANSWERS_LIMIT = 4

ROUNDING = 1e-6
"""Who waited as long as he was told must not be told to wait for a trillionth of a second more."""
BUDGET_TOKENS = 10.0
BUDGET_TOKENS_PER_S = 4.0
BUDGET_TOKENS_PER_SUCCESS = 1.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff within a budget.

    The budget bounds when the last try may begin, so the whole takes no longer than the budget
    and one more try.
    """

    budget_s: float
    attempts: int | None = 5
    """None: as many as the time allows."""
    first_delay_s: float = 0.2
    factor: float = 2.0
    longest_delay_s: float = 4.0

    def delay_s(
        self, tries: int, elapsed_s: float, wanted_s: float | None, jitter: float
    ) -> float | None:
        """Seconds to wait before the next try; None to give up.

        Args:
            tries: how many were made, at least 1.
            elapsed_s: since the first one began.
            wanted_s: what the registry asked for (``Retry-After``), if it did.
            jitter: 0..1, so that many clients do not come back at once.
        """
        if self.attempts is not None and tries >= self.attempts:
            return None
        delay = self.first_delay_s * self.factor ** min(tries - 1, 30)
        delay = min(delay, self.longest_delay_s) * (0.5 + jitter / 2)
        if wanted_s is not None:
            delay = max(delay, wanted_s)
        return delay if elapsed_s + delay <= self.budget_s else None


class TokenBucket:
    """A rate limit that lets short bursts through; times are seconds on any clock."""

    def __init__(
        self, capacity: float, tokens_per_s: float, first: float | None = None, now: float = 0.0
    ) -> None:
        self._capacity = capacity
        self._tokens_per_s = tokens_per_s
        self._tokens = capacity if first is None else first
        self._then = now

    @property
    def level(self) -> float:
        """Tokens in it when it was last used."""
        return self._tokens

    def add(self, tokens: float) -> None:
        """Put tokens in, as far as they fit."""
        self._tokens = min(self._capacity, self._tokens + tokens)

    def take(self, now: float) -> float:
        """Take one token and return 0, or take none and return the seconds until there is one."""
        self.add(max(0.0, now - self._then) * self._tokens_per_s)
        self._then = max(now, self._then)
        if self._tokens >= 1.0 - ROUNDING:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._tokens_per_s if self._tokens_per_s else float("inf")


class RetryBudget(TokenBucket):
    """What bounds the second and later tries at one host.

    A few at once, then some a second and one for every request that went well: a host that fails
    every second time is asked again freely, one that is gone some times a second, however many
    readers wait for it.
    """

    def __init__(self, now: float) -> None:
        super().__init__(BUDGET_TOKENS, BUDGET_TOKENS_PER_S, now=now)

    def add_success(self) -> None:
        """A request went well."""
        self.add(BUDGET_TOKENS_PER_SUCCESS)


def ask_again(liars: Sequence[str]) -> bool:
    """Whether content may be right another time, after those gave it wrong, one after another.

    Each host gets a second chance, as something on the way may have broken the bytes; in all a few.
    """
    return len(liars) < WRONG_ANSWERS_LIMIT and liars[-1] not in liars[:-1]


def parse_retry_after(header: str | None, date: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for; None when it does not, or not readably.

    A point in time counts from the answer's own ``Date``: clocks differ.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if not text or not date:
        return None
    try:
        then, now = parsedate_to_datetime(text), parsedate_to_datetime(date)
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
