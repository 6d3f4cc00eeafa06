"""Listings that will be asked for next, made while nobody asks for anything."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from lazyfs.model import NodeId

MAX_MADE = 4
"""Listings that are kept until they are asked for."""

MAX_EXPECTED = 2048
"""Listings that are expected (about 300 bytes each)."""


Listed: TypeAlias = bytes | bytearray


class Wanted(NamedTuple):
    """All that a listing depends on."""

    directory: NodeId
    position: int
    size: int
    """Bytes that it may take."""
    with_files: bool
    """Whether files come with attributes, and not directories only."""


class Ahead:
    """Who walks a tree lists a directory to its end, and then what is in it, depth first.

    So the next listings are known while he still works on the last one. Those of other directories
    are made once one was listed that was expected: who lists only one directory costs nothing.
    """

    def __init__(self) -> None:
        self._expected: set[Wanted] = set()
        self._left: list[tuple[NodeId, deque[Wanted]]] = []
        """By directory on the way down, what was expected of it; the next one first."""
        self._made: OrderedDict[Wanted, Listed | None] = OrderedDict()
        """None: it cannot be made without waiting."""
        self._walks = False

    def take(self, wanted: Wanted) -> Listed | None:
        """A listing that is asked for, if it was made."""
        if wanted in self._made:
            return self._made.pop(wanted)
        if wanted in self._expected:
            self._expected.remove(wanted)
            if wanted.position == 0:
                self._walks = True
            if len(self._made) == MAX_MADE:  # the walk has another order
                self._made.popitem(last=False)
        else:
            self._expected.clear()
            self._left.clear()
            self._made.clear()
            self._walks = False
        return None

    def expect(self, wanted: Wanted, follow: Sequence[Wanted]) -> None:
        """What comes behind a listing, the next one first, and before all that is expected."""
        nearest = self._nearest()
        goes_on = bool(wanted.position and nearest and nearest[0] == wanted.directory)
        while (room := MAX_EXPECTED - sum(len(left) for _, left in self._left)) < len(follow):
            if len(self._left) == goes_on:
                follow = follow[:room]
                break
            self._expected.difference_update(self._left.pop(0)[1])
        if nearest and goes_on:
            nearest[1].extendleft(follow[:1])  # the rest of it comes before what is in it
            nearest[1].extend(follow[1:])
        elif follow:
            self._left.append((wanted.directory, deque(follow)))
        self._expected.update(follow)

    def next(self) -> Wanted | None:
        """What to make now, if anything."""
        nearest = self._nearest()
        if nearest is None or len(self._made) == MAX_MADE:
            return None
        wanted = nearest[1][0]
        if wanted.position == 0 and not self._walks:
            return None
        self._expected.remove(wanted)
        self._made[wanted] = None
        return wanted

    def keep(self, wanted: Wanted, listed: Listed) -> None:
        """Keep what ``next`` wanted until it is asked for."""
        self._made[wanted] = listed

    def _nearest(self) -> tuple[NodeId, deque[Wanted]] | None:
        """The last directory of which something is left, and that; those before it are dropped."""
        while self._left:
            _, left = self._left[-1]
            while left and left[0] not in self._expected:
                left.popleft()
            if left:
                return self._left[-1]
            self._left.pop()
        return None
