"""What a fault is, and what became of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from faults.stage import Stage

REFUSED = "mount refused: "

Script: TypeAlias = Callable[[Stage], str]
"""Makes the fault happen and says in a few words what was seen."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the table."""

    name: str
    does: str
    """What goes wrong, for people."""
    expected: str
    """What must be seen; after ``mount refused: `` words that the message must have."""
    script: Script

    def agrees(self, seen: str) -> bool:
        """Whether what was seen is what was expected."""
        if self.expected.startswith(REFUSED):
            words = self.expected.removeprefix(REFUSED)
            return seen.startswith(REFUSED) and words in seen
        return seen == self.expected


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one fault."""

    fault: Fault
    seen: str
    took_s: float
    details: str = ""
    """What helps to find out why it was not what was expected."""

    @property
    def agrees(self) -> bool:
        """Whether it went as expected."""
        return self.fault.agrees(self.seen)
