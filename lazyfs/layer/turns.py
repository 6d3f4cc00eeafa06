"""When requests that nobody waits for are sent, and the measuring of what comes.

Two kinds of them stand in line. What follows from the reads of this moment (read-ahead, guesses)
goes first. What was known before (profiles, the rest of an image) comes after it, and is held back
while readers mostly wait for something else (``surprise.py``).
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from cache.key import ChunkKey
from lazyfs.layer.line import Line
from lazyfs.layer.piece import Piece
from lazyfs.layer.surprise import Surprise

LOOK_S = 0.25
"""Who is held back looks again after so long at least: many may stand in line on a thin line."""


@dataclass(slots=True, eq=False)
class Turn:
    """A request's place in the line of those that nobody waits for."""

    length: int
    """Bytes."""
    late: bool = False
    """It is not of the reads of this moment."""
    go: trio.Event = field(default_factory=trio.Event)
    """Its turn has come, or somebody waits for it now."""
    granted: bool = False

    def withdraw(self) -> None:
        """Nothing is to be asked for any more."""
        self.length = 0
        self.go.set()


def nothing() -> None:
    """Nobody makes use of a line that is free."""


class Turns:
    """Readers always have theirs at once; the background waits until the line has room."""

    def __init__(self, line: Line) -> None:
        """Measure ``line``, and share it."""
        self.line = line
        self._surprise = Surprise()
        self._soon: deque[Turn] = deque()
        self._late: deque[Turn] = deque()
        self.spare: Callable[[], None] = nothing
        """Called when nobody is in the line who may ask, after something came or ended."""

    def asked(self, length: int) -> None:
        """Bytes that a reader waits for are asked for; ``answer`` must follow."""
        self.line.asked(length)

    @property
    def has_late(self) -> bool:
        """Whether somebody fills the line with what was known before."""
        return bool(self._late)

    def line_up(self, length: int, *, late: bool = False) -> Turn:
        """Take a place in the line of those that nobody waits for; ``wait`` must follow.

        Args:
            length: in bytes.
            late: not before those who follow the reads of this moment, nor while readers mostly
                wait for what nobody foresaw.
        """
        turn = Turn(length, late)
        self._of(turn).append(turn)
        return turn

    def _of(self, turn: Turn) -> deque[Turn]:
        return self._late if turn.late else self._soon

    def brings(self, keys: Iterable[ChunkKey]) -> None:
        """Pieces will come by late turns."""
        self._surprise.brings(keys)

    def wanted(self, parts: Iterable[tuple[Piece, int, int]]) -> None:
        """Readers want parts of pieces, wherever these come from."""
        if self._surprise.unused:
            self._surprise.wanted(piece.key for piece, _, _ in parts)

    @contextmanager
    def surprised(self) -> Iterator[None]:
        """A reader waits, within the block, for what nobody foresaw."""
        self._surprise.begins(trio.current_time())
        try:
            yield
        finally:
            self._surprise.ends(trio.current_time())

    async def wait(self, turn: Turn) -> None:
        """Wait for a turn, or until somebody sets its ``go``; ``answer`` must follow."""
        try:
            await trio.lowlevel.checkpoint()  # readers that are ready ask first
            self._grant()
            while not turn.go.is_set():
                with trio.move_on_after(self._look_after_s(turn)):
                    await turn.go.wait()
                if not turn.go.is_set():
                    self._grant()
        finally:
            if not turn.granted:
                self._of(turn).remove(turn)
                self._grant()
        if not turn.granted:
            self.line.asked(turn.length)

    @contextmanager
    def answer(self, length: int) -> Iterator["Answer"]:
        """Bytes that were asked for come, within the block if at all."""
        answer = Answer(self, length)
        try:
            yield answer
        finally:
            answer.end()

    def received(self) -> None:
        """Some came: there may be room."""
        self._grant()

    def _grant(self) -> None:
        while (turn := self._next()) is not None and self.line.has_room(turn.length):
            self._of(turn).popleft()
            turn.granted = True
            self.line.asked(turn.length)
            turn.go.set()
        if turn is None:
            self.spare()

    def _next(self) -> Turn | None:
        """Whose turn it is when the line has room."""
        if self._soon:
            return self._soon[0]
        if self._late and not self._is_held(self._late[0]):
            return self._late[0]
        return None

    def _is_held(self, turn: Turn) -> bool:
        """Whether readers should have the line for themselves.

        Where an answer's bytes take less time than its way, what is on the line besides hardly
        matters to them, and what they will want comes sooner than they could ask for it.
        """
        if self.line.transfer_s(turn.length) < self.line.round_trip_s:
            return False
        return self._surprise.calm_s(trio.current_time()) > 0

    def _look_after_s(self, turn: Turn) -> float:
        """When who waits for a turn looks himself: nothing that comes may end his being held."""
        if not turn.late:
            return math.inf
        return max(self._surprise.calm_s(trio.current_time()), LOOK_S)


class Answer:
    """One request's bytes as they come."""

    def __init__(self, turns: Turns, length: int) -> None:
        """Expect ``length`` bytes."""
        self._turns = turns
        self._missing = length
        self._asked_s = trio.current_time()
        self._began = False

    def sent(self) -> None:
        """The request is sent only now."""
        self._asked_s = trio.current_time()

    async def counted(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The same bytes, measured."""
        line = self._turns.line
        async for data in stream:
            now_s = trio.current_time()
            if self._began:
                line.received(now_s, len(data))
            else:
                self._began = True
                line.began(now_s, now_s - self._asked_s, len(data))
            self._missing -= len(data)
            self._turns.received()
            yield data

    def end(self) -> None:
        """No more comes."""
        self._turns.line.given_up(self._missing)
        if self._began:
            self._turns.line.ended(trio.current_time())
        self._turns.received()
