"""Whether readers want what the background brings, or something else.

Pure: the caller brings the time, in seconds on any clock that does not jump. Where a startup
profile fits, much of what readers want has been brought by it or is on its way, and nothing is
gained by holding the rest of it back. Where it does not, each read would stand behind the bytes of
the profile that fill the line. Counted is what readers had to ask for themselves, against what was
brought; and who wants nothing any more has no say for long.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

WEIGHT = 1 / 4
"""Of one piece that a reader wanted, against all before."""

MEMORY_S = 1.0
"""Seconds in which nobody waits after which what was weighs 1/e."""

MOST_UNUSED = 256
"""Pieces that nobody has wanted yet of which is remembered that they were brought."""

MOST_SHARE = 0.5
"""With more than that readers have the line for themselves."""


@dataclass(slots=True)
class Surprise:
    """The share of what readers want that nobody foresaw."""

    unused: dict[Hashable, None] = field(default_factory=dict)
    """What was brought, and nobody has wanted yet; the latest last."""
    _share: float = 0.0
    _known_s: float = 0.0
    """When the share was that."""
    _waiting: int = 0

    def begins(self, now_s: float) -> None:
        """A reader begins to wait for something that he had to ask for."""
        self._fade(now_s)
        self._share += WEIGHT * (1 - self._share)
        self._waiting += 1

    def ends(self, now_s: float) -> None:
        """He waits no more."""
        self._fade(now_s)
        self._waiting -= 1

    def brings(self, keys: Iterable[Hashable]) -> None:
        """The background brings pieces, or is about to."""
        self.unused.update(dict.fromkeys(keys))
        while len(self.unused) > MOST_UNUSED:
            del self.unused[next(iter(self.unused))]

    def wanted(self, keys: Iterable[Hashable]) -> None:
        """A reader wants pieces: each that was brought was foreseen."""
        for key in keys:
            if key in self.unused:
                del self.unused[key]
                self._share -= WEIGHT * self._share

    def calm_s(self, now_s: float) -> float:
        """Seconds until the share is small enough, if nobody waits from now on; 0: it is."""
        self._fade(now_s)
        if self._share <= MOST_SHARE:
            return 0.0
        return MEMORY_S * math.log(self._share / MOST_SHARE)

    def _fade(self, now_s: float) -> None:
        if not self._waiting:
            self._share *= math.exp((self._known_s - now_s) / MEMORY_S)
        self._known_s = now_s
