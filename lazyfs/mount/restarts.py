"""When a daemon that died is started again, and when that is given up.

Pure arithmetic, and free of imports that cost memory: a supervisor runs for each mount.
"""

BACKOFF_S = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Pauses before the tries after a daemon that did not come to serve; then it is given up."""

WINDOW_S = 300.0
MAX_DEATHS = 100
"""More deaths than this within the window, and it is given up: a request that kills every daemon
would otherwise be handed to one after the other for ever."""

HASTE_WINDOW_S = 10.0
HASTE_DEATHS = 10
HASTE_PAUSE_S = 0.5
"""More than so many deaths within a short time cost a pause before each further start."""


class Restarts:
    """Remembers deaths and decides about the next start."""

    def __init__(self) -> None:
        self._failed_starts = 0
        self._deaths_s: list[float] = []

    def pause_s(self, *, served: bool, now_s: float) -> float | None:
        """How long to wait after a death that happened now; None: give up.

        Args:
            served: whether the daemon had come so far as to serve the mount.
            now_s: a clock that only goes forward.
        """
        self._deaths_s = [then for then in self._deaths_s if now_s - then < WINDOW_S]
        self._deaths_s.append(now_s)
        self._failed_starts = 0 if served else self._failed_starts + 1
        if self._failed_starts > len(BACKOFF_S) or len(self._deaths_s) > MAX_DEATHS:
            return None
        if self._failed_starts:
            return BACKOFF_S[self._failed_starts - 1]
        hasty = sum(now_s - then < HASTE_WINDOW_S for then in self._deaths_s)
        return HASTE_PAUSE_S if hasty > HASTE_DEATHS else 0.0
