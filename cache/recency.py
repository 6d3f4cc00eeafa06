"""What this process used lately: exact where the times on the disk are a minute coarse."""

import threading
from typing import Final

MAX_REMEMBERED: Final = 8192
"""About two megabytes of names; for older uses the times on the disk must do."""


class RecentUses:
    """The last use of the names used last; for any thread."""

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._lock = threading.Lock()

    def note(self, name: str, now_ns: int) -> None:
        """Remember that ``name`` was used at ``now_ns`` (since the epoch)."""
        with self._lock:
            self._uses.pop(name, None)  # so that the order of the dict is the order of use
            self._uses[name] = now_ns
            if len(self._uses) > MAX_REMEMBERED:
                del self._uses[next(iter(self._uses))]

    def last_use_ns(self, name: str) -> int:
        """When ``name`` was used last, 0 if that is not remembered."""
        return self._uses.get(name, 0)
