"""Keeps the log readable while thousands of requests fail for one reason.

A failure that is new is logged at once; the same failure again only after ``QUIET_S``, then
with the number of times it happened in between. Whatever the failures are, at most
``BURST_LINES`` lines come in ``QUIET_S``. Memory: ``MAX_REMEMBERED`` texts.
"""

from collections import OrderedDict

QUIET_S = 60.0
BURST_LINES = 50
MAX_REMEMBERED = 512


class FailureLog:
    """Decides which failures become a line in the log."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Failure → when it was last admitted, and how often it was swallowed since."""
        self._window_start_s = float("-inf")
        self._window_lines = 0

    def admit(self, failure: str, now_s: float) -> int | None:
        """How many of the same were swallowed since the last line, or None: no line now.

        Args:
            failure: what happened, without what differs from request to request.
            now_s: a clock that only goes forward.
        """
        if now_s - self._window_start_s >= QUIET_S:
            self._window_start_s = now_s
            self._window_lines = 0
        admitted_s, swallowed = self._seen.pop(failure, (float("-inf"), 0))
        if now_s - admitted_s >= QUIET_S and self._window_lines < BURST_LINES:
            self._window_lines += 1
            self._remember(failure, now_s, 0)
            return swallowed
        self._remember(failure, admitted_s, swallowed + 1)
        return None

    def _remember(self, failure: str, admitted_s: float, swallowed: int) -> None:
        self._seen[failure] = (admitted_s, swallowed)
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
