"""When to ask again, and after how long."""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different the next time."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff within a budget.

    The budget bounds when the last try may begin, so the whole takes no longer than the budget
    and one more try.
    """

    budget_s: float
    attempts: int = 5
    first_delay_s: float = 0.2
    factor: float = 2.0

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
        if tries >= self.attempts:
            return None
        delay = self.first_delay_s * self.factor ** (tries - 1) * (0.5 + jitter / 2)
        if wanted_s is not None:
            delay = max(delay, wanted_s)
        return delay if elapsed_s + delay <= self.budget_s else None


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
