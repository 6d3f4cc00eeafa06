"""When requests that nobody waits for are sent, and the measuring of what comes."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from lazyfs.layer.line import Line


@dataclass(slots=True, eq=False)
class Turn:
    """A request's place in the line of those that nobody waits for."""

    length: int
    """Bytes."""
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
        self._waiting: deque[Turn] = deque()
        self.spare: Callable[[], None] = nothing
        """Called when nobody is in the line, after something came or ended."""

    def asked(self, length: int) -> None:
        """Bytes that a reader waits for are asked for; ``answer`` must follow."""
        self.line.asked(length)

    def line_up(self, length: int) -> Turn:
        """Take a place in the line of those that nobody waits for; ``wait`` must follow."""
        turn = Turn(length)
        self._waiting.append(turn)
        return turn

    async def wait(self, turn: Turn) -> None:
        """Wait for a turn, or until somebody sets its ``go``; ``answer`` must follow."""
        try:
            await trio.lowlevel.checkpoint()  # readers that are ready ask first
            self._grant()
            await turn.go.wait()
        finally:
            if not turn.granted:
                self._waiting.remove(turn)
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
        while self._waiting and self.line.has_room(self._waiting[0].length):
            turn = self._waiting.popleft()
            turn.granted = True
            self.line.asked(turn.length)
            turn.go.set()
        if not self._waiting:
            self.spare()


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
