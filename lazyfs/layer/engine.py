"""What the layers of a mount share: store, flights, threads, turns, and the memory of failures."""

import logging
from dataclasses import dataclass, field

import trio

from cache.errors import CacheError
from cache.flights import Flights
from cache.key import ChunkKey
from cache.memo import Memo
from cache.store import ChunkStore
from lazyfs.failurelog import FailureLog
from lazyfs.interfaces import Notebook
from lazyfs.layer.chunks import PieceMemory, remembered_pieces
from lazyfs.layer.failures import Failure, FailureMemory
from lazyfs.layer.guess import Guesser
from lazyfs.layer.line import Line
from lazyfs.layer.macs import MacMemory
from lazyfs.layer.turns import Turns
from lazyfs.verity.leaves import LeafMemory

DECODED_BYTES = 32 << 20
"""Decompressed chunks kept in memory for all layers (at least one)."""

PROVERS = 2
"""Threads at once that hold what comes from the store against hash trees."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """What all layers of a mount share for fetching."""

    nursery: trio.Nursery
    store: ChunkStore
    flights: Flights
    timeout_s: float
    """How long a fetch may stall; 0: for ever."""
    requests: trio.CapacityLimiter
    """Requests under way at once."""
    workers: trio.CapacityLimiter
    """Threads that check and decompress."""
    notes: Notebook | None = None
    """What layers note for a later mount."""
    leaves: LeafMemory = field(default_factory=LeafMemory)
    """Proven leaf blocks of hash trees."""
    pieces: PieceMemory = field(default_factory=remembered_pieces)
    """Descriptions of chunks."""
    provers: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(PROVERS))
    """Threads that hash what comes from the store."""
    proving_readers: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(PROVERS)
    )
    """Threads that read it as well: a disk that hangs must not keep others from hashing."""
    macs: MacMemory = field(default_factory=MacMemory)
    """What was proven in this daemon's life."""
    decoded: Memo = field(default_factory=lambda: Memo(DECODED_BYTES))
    """Decompressed chunks, by layer and index, where the store has none in that form."""
    store_failed: bool = False
    """Whether the last write to the store failed (logged once, until it works again)."""

    failures: FailureMemory = field(default_factory=FailureMemory)
    """What failed last, by layer and part."""
    lines: FailureLog = field(default_factory=FailureLog)
    """Which failures become a line in the log."""
    turns: Turns = field(default_factory=lambda: Turns(Line()))
    """When what nobody waits for is asked for."""
    guesser: Guesser | None = None
    """Guesses what readers will want next; None: nobody does."""

    async def keep(self, key: ChunkKey, data: bytes) -> None:
        """Store bytes; without a working cache readers get what they want all the same."""
        try:
            await self.store.put(key, data)
        except CacheError as error:
            if not self.store_failed:
                line = f"the cache cannot be written, reading on without it: {error}"
                self.say(logging.WARNING, line, line, {"event": "cache_failing"})
            self.store_failed = True
        else:
            if self.store_failed:
                line = "the cache can be written again"
                self.say(logging.WARNING, line, line, {"event": "cache_recovered"})
            self.store_failed = False

    def report(self, how: str, failure: Failure, event: str, outage: int = 0) -> None:
        """Remember a failure, and log it unless the same was logged a moment ago.

        Args:
            how: what came of it.
            failure: which.
            event: the name of that in the log.
            outage: tells it from the same in another outage, which is news.
        """
        self.failures.note(failure)
        line = f"{failure.layer}: {failure.part} from {failure.host}: {how}: {failure.message}"
        fields = {"event": event} | failure.fields()
        self.say(logging.ERROR, line, f"{line} {outage}", fields)

    def say(self, level: int, line: str, same: str, fields: dict[str, object]) -> None:
        """Log a line, unless ``same`` was logged a moment ago, or very much was."""
        swallowed = self.lines.admit(same, trio.current_time())
        if swallowed is not None:
            more = f" ({swallowed} more like it since)" if swallowed else ""
            log.log(level, "%s%s", line, more, extra=fields)
