"""Remembers for a moment which reads waited in vain.

The kernel asks for a page twice: first as read-ahead, then, when that failed, once more by itself;
and all processes that wait for the page do so one after the other. If each of these requests
waited for its own deadline, the last reader would be freed after many. So a read that failed
after a long wait fails at once for ``MEMORY_S`` seconds, wherever it overlaps. That time does not
begin anew with the reads that fail by it: who asks later gets a new try.
"""

from collections import OrderedDict
from typing import NamedTuple

from lazyfs.model import ByteRange, NodeId

MEMORY_S = 1.0
"""How long; a failure that came faster than this is cheaper to have again than to remember."""

MAX_REMEMBERED = 1024


class LateRead(NamedTuple):
    """A read that failed."""

    node: NodeId
    where: ByteRange
    error: Exception


class Lateness:
    """The reads that failed late, a moment ago."""

    def __init__(self) -> None:
        self._reads: OrderedDict[LateRead, float] = OrderedDict()
        """With the time when each is forgotten; the oldest come first."""

    def note(self, read: LateRead, waited_s: float, now_s: float) -> None:
        """Remember a read that failed now, after it had waited."""
        if waited_s < MEMORY_S:
            return
        self._reads.pop(read, None)  # it goes to the end
        self._reads[read] = now_s + MEMORY_S
        if len(self._reads) > MAX_REMEMBERED:
            self._reads.popitem(last=False)

    def error(self, node: NodeId, where: ByteRange, now_s: float) -> Exception | None:
        """Why a read of that range just failed, if it did."""
        while self._reads and next(iter(self._reads.values())) <= now_s:
            self._reads.popitem(last=False)
        for read in self._reads:
            if (
                read.node == node
                and read.where.offset < where.end
                and where.offset < read.where.end
            ):
                return read.error
        return None
