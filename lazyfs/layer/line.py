"""How fast a line is, and what follows from it for the requests that nobody waits for.

Pure: the caller brings the time, in seconds on any clock that does not jump. Two figures are
estimated from what arrives: seconds until an answer begins, and bytes a second while answers come.
What a reader waits for is always asked for at once. The rest (read-ahead, prefetch) takes turns:
so much of it is under way that the line is never idle, and no more, so that what a reader wants
next stands behind a quarter of a second of other bytes at most.
"""

from collections import deque
from dataclasses import dataclass, field

SAMPLE_BYTES = 256 << 10
"""The rate is measured over so many bytes, whoever gets them."""

LEAST_SAMPLE_BYTES = 32 << 10
"""... or over fewer, when nothing more comes."""

FASTER, SLOWER = 0.5, 0.2
"""Weight of a sample above, and below, the estimated rate: a line looks slower than it is when
the server is slow, TCP has just started or a reader's machine is busy."""

QUEUE_S = 0.25
"""How long bytes that nobody waits for may keep the line busy."""

UNKNOWN_BYTES = 1 << 20
"""Under way in the background as long as nothing is known of the line."""

LEAST_RUN_BYTES, MOST_RUN_BYTES = 128 << 10, 8 << 20
"""Of a background request."""

REQUEST_S = 0.002
"""What a request costs besides waiting: this machine's and the server's work."""

RTT_SHARE = 0.1
"""... and the part of a round trip that other requests under way do not hide."""

MOST_GAP_BYTES = 256 << 10
"""Between two wanted pieces, fetched along with them."""

LEAST_AHEAD_BYTES, MOST_AHEAD_BYTES = 1 << 20, 16 << 20

AT_ONCE_S = 4e-4
"""What comes sooner was in this machine's memory, and says nothing of the line: a request alone
takes longer. On a busy machine memory takes 0.1 ms, and one such answer would end all guessing."""

WAITS = 64
"""Answers of which the soonest tells the round trip: the others stood behind what was under way,
which would make a queue of our own look like a long line, and make it longer."""

LEAST_WAIT_S = 0.01
"""What can be had sooner is not guessed: asking for it when it is wanted is as good."""

LONG_BYTES = 256 << 10
"""A line is long that carries so much in a round trip: a chunk of 512 KiB, compressed."""

GUESS_ROUND_TRIPS = 1.2
"""Guesses fill the line for so long: a bit more than until the next one can come."""

FORESEEN_ROUND_TRIPS = 2
"""The same of what is nearly sure to be wanted."""

PAUSE_S = 0.02
"""So long the line is idle in any case between what a reader got and what it wants next: bytes
are checked, a program runs."""

MOST_PAUSE_BYTES = 256 << 10
"""A fast line is not filled in that time: this machine has other work to do."""


@dataclass(slots=True)
class Line:
    """The way to the hosts of a mount."""

    bytes_per_s: float | None = None
    """While answers come."""
    round_trip_s: float = 0.0
    """Until an answer begins if nothing stands before it; 0: not known."""
    under_way: int = 0
    """Bytes that were asked for and have not come yet."""

    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=WAITS))
    """Seconds to the first byte, lately."""
    _streams: int = 0
    _sample_bytes: int = 0
    _sample_from_s: float = 0.0

    def asked(self, length: int) -> None:
        """Bytes were asked for, or will be at once."""
        self.under_way += length

    def given_up(self, length: int) -> None:
        """Bytes that were asked for will not come."""
        self.under_way -= length

    def began(self, now_s: float, waited_s: float, length: int) -> None:
        """The first bytes of an answer came, ``waited_s`` after it was asked for."""
        if waited_s >= AT_ONCE_S:
            self._waits.append(waited_s)
            self.round_trip_s = min(self._waits)
        if not self._streams:  # these came before the clock was started
            self._sample_from_s = now_s
            self._sample_bytes = -length
        self._streams += 1
        self.received(now_s, length)

    def received(self, now_s: float, length: int) -> None:
        """More bytes of any answer came."""
        self.under_way -= length
        self._sample_bytes += length
        if self._sample_bytes >= SAMPLE_BYTES:
            self._sample(now_s)

    def ended(self, now_s: float) -> None:
        """An answer that had begun has ended, well or not."""
        self._streams -= 1
        if not self._streams and self._sample_bytes >= LEAST_SAMPLE_BYTES:
            self._sample(now_s)

    def _sample(self, now_s: float) -> None:
        elapsed_s = now_s - self._sample_from_s
        if elapsed_s > 0:
            rate = self._sample_bytes / elapsed_s
            known = rate if self.bytes_per_s is None else self.bytes_per_s
            self.bytes_per_s = known + (FASTER if rate > known else SLOWER) * (rate - known)
        self._sample_from_s, self._sample_bytes = now_s, 0

    def transfer_s(self, length: int) -> float:
        """Seconds that bytes take the line; 0: not known."""
        return 0.0 if self.bytes_per_s is None else length / self.bytes_per_s

    @property
    def background_bytes(self) -> int:
        """How much may be under way for something in the background to be asked for as well."""
        if self.bytes_per_s is None:
            return UNKNOWN_BYTES
        return int(self.bytes_per_s * (QUEUE_S + 2 * self.round_trip_s))

    @property
    def run_bytes(self) -> int:
        """How long a request in the background may be."""
        if self.bytes_per_s is None:
            return UNKNOWN_BYTES // 2
        wanted = int(self.bytes_per_s * QUEUE_S)
        return max(LEAST_RUN_BYTES, min(wanted, MOST_RUN_BYTES))

    @property
    def gap_bytes(self) -> int:
        """How much between two wanted pieces is fetched rather than a second request sent."""
        if self.bytes_per_s is None:
            return 0
        saved_s = REQUEST_S + RTT_SHARE * self.round_trip_s
        return min(int(self.bytes_per_s * saved_s), MOST_GAP_BYTES)

    @property
    def along_bytes(self) -> int:
        """How much is worth fetching along with what a reader waits for, if he may want it soon.

        It takes as long as another request would.
        """
        if self.bytes_per_s is None or not self.round_trip_s:
            return UNKNOWN_BYTES
        return int(self.bytes_per_s * (REQUEST_S + self.round_trip_s))

    @property
    def ahead_bytes(self) -> int:
        """How far ahead of a sequential reader to fetch: so that the line is never idle."""
        if self.bytes_per_s is None:
            return LEAST_AHEAD_BYTES
        wanted = int(self.bytes_per_s * (QUEUE_S + 4 * self.round_trip_s))
        return max(LEAST_AHEAD_BYTES, min(wanted, MOST_AHEAD_BYTES))

    @property
    def _round_trip_bytes(self) -> float:
        """What the line carries in a round trip; 0: not known."""
        return (self.bytes_per_s or 0.0) * self.round_trip_s

    @property
    def guess_bytes(self) -> int:
        """How much may be under way for guesses to be asked for as well.

        So much as the line carries while a reader of one chunk after the other leaves it idle, so
        that wrong guesses hardly keep up what such a reader wants next.
        """
        if self.bytes_per_s is None or not self.round_trip_s:
            return 0
        pause_bytes = min(self.bytes_per_s * PAUSE_S, MOST_PAUSE_BYTES)
        return int(max(GUESS_ROUND_TRIPS * self._round_trip_bytes, pause_bytes))

    def may_guess(self, length: int, others: int = 0) -> bool:
        """Whether a guess is worth it, and may be asked for now.

        Args:
            length: of the guess.
            others: to be asked for before it.
        """
        room = self.under_way + others + length <= self.guess_bytes
        return room and self.round_trip_s + self.transfer_s(length) >= LEAST_WAIT_S

    @property
    def is_long(self) -> bool:
        """Whether waiting takes most of the time of who asks for one thing after the other.

        Then what he will want should be under way before he knows it himself, and what is fetched
        in vain meanwhile costs little.
        """
        return self.round_trip_s >= LEAST_WAIT_S and self._round_trip_bytes >= LONG_BYTES

    def may_foresee(self, length: int, others: int = 0) -> bool:
        """Whether what will be wanted soon may be asked for now.

        On a long line not all at once: so much would stand before the little that says what
        else will be wanted. On others it all comes in the time that this takes.

        Args:
            length: of it.
            others: to be asked for before it.
        """
        under_way = self.under_way + others
        if not self.is_long or under_way <= 0:
            return True
        return under_way + length <= FORESEEN_ROUND_TRIPS * self._round_trip_bytes

    def has_room(self, length: int) -> bool:
        """Whether something in the background may be asked for now."""
        return self.under_way <= 0 or self.under_way + length <= self.background_bytes
