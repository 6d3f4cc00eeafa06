"""Listings that will be asked for next, made while nobody asks for anything."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from lazyfs.model import NodeId

MAX_MADE = 4
"""Listings that are kept until they are asked for."""

MAX_EXPECTED = 2048
"""Listings that are expected (about 250 bytes each)."""


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
        self._expected: dict[Wanted, None] = {}
        """The next one last."""
        self._made: OrderedDict[Wanted, bytes | bytearray | None] = OrderedDict()
        """None: it cannot be made without waiting."""
        self._walks = False

    def take(self, wanted: Wanted) -> bytes | bytearray | None:
        """A listing that is asked for, if it was made."""
        if wanted in self._made:
            return self._made.pop(wanted)
        if wanted in self._expected:
            del self._expected[wanted]
            if wanted.position == 0:
                self._walks = True
            if len(self._made) == MAX_MADE:  # the walk has another order
                self._made.popitem(last=False)
        else:
            self._expected.clear()
            self._made.clear()
            self._walks = False
        return None

    def expect(self, follow: Sequence[Wanted]) -> None:
        """What comes before all that is expected already, the next one first."""
        expected = self._expected
        for wanted in reversed(follow):
            expected[wanted] = None
        while len(expected) > MAX_EXPECTED:
            del expected[next(iter(expected))]

    def next(self) -> Wanted | None:
        """What to make now, if anything."""
        if not self._expected or len(self._made) == MAX_MADE:
            return None
        wanted, _ = self._expected.popitem()
        if wanted.position == 0 and not self._walks:
            self._expected[wanted] = None
            return None
        self._made[wanted] = None
        return wanted

    def keep(self, wanted: Wanted, answer: bytes | bytearray) -> None:
        """Keep what ``next`` gave until it is asked for."""
        if wanted in self._made:
            self._made[wanted] = answer
