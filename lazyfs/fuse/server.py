"""The loop between the FUSE device and the operations of a file system.

One task leads: it reads requests and answers them, one after the other, for as long as none has to
wait. Then there is neither a task nor a lock nor a deadline to be made for a request. When one
waits, another task takes the lead, and the first one ends with its request.
"""

import errno
import logging
import os
import struct
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeAlias

import trio

from lazyfs.errors import DeadlineExceededError, FuseRequestError
from lazyfs.fuse.counters import Counters
from lazyfs.fuse.errno_table import ErrnoError, first_cause
from lazyfs.fuse.killed import LOOK_EVERY_S, is_ending
from lazyfs.fuse.protocol import (
    CHANGES,
    IN_HEADER,
    MAX_BACKGROUND,
    MIN_BUFFER_BYTES,
    OUT_HEADER,
    Opcode,
)
from lazyfs.fuse.requests import decode_interrupt
from lazyfs.fuse.stepping import until_it_waits
from lazyfs.model import NodeId

WAITING_AT_ONCE = MAX_BACKGROUND + 1536
"""Requests that may wait at once: many more than reads of pages, so that lookups get through.
The kernel keeps the others."""

ANSWERS_IN_A_ROW = 32
"""After so many other tasks get their turn: those that fetch, above all."""

LINGER_S = 50e-6
"""How long it is looked for the next request before one is waited for, which costs as much."""

FAST_S = 200e-6
"""Who takes no longer to ask again than this asks fast."""

SEVERAL_CORES = len(os.sched_getaffinity(0)) > 1
"""Whether anybody can ask for something while we look."""

GRACE_S = 2.0
"""How long requests may still be answered once the end was asked for."""

Answer: TypeAlias = bytes | bytearray | memoryview
Handler: TypeAlias = Callable[[NodeId, bytes], Coroutine[Any, Any, Answer]]
"""Takes the node and the whole request, which it decodes; gives what follows the answer's head."""

log = logging.getLogger(__name__)


class Operations(Protocol):
    """A file system, as the server wants it."""

    @property
    def handlers(self) -> Mapping[int, Handler]:
        """By opcode."""
        ...

    @property
    def counters(self) -> Counters:
        """Told what happens."""
        ...

    @property
    def deadline_s(self) -> float:
        """How long a request may wait."""
        ...

    def errno_for(self, operation: str, node: NodeId, error: Exception, began_s: float) -> int:
        """What a reader gets for a failure; never raises."""
        ...

    async def prepare(self) -> bool:
        """Do a part of what will be asked for; False: there is none. Never waits, never raises."""
        ...


class Server:
    """Serves a connection that was agreed upon before (``lazyfs.fuse.kernelmount``)."""

    def __init__(self, device: int, operations: Operations) -> None:
        """Serve ``device``, which stays the caller's and becomes non-blocking."""
        self.device = device
        self.operations = operations
        self.handlers = {
            opcode: (Opcode(opcode).name.lower(), handler)
            for opcode, handler in operations.handlers.items()
        }
        self.stopped = False
        """Whether no more requests are read."""
        self._nursery: trio.Nursery
        self._leader: _Turn | None = None
        self._waiting: dict[int, _Turn] = {}
        """Those whose request waits, by its number."""
        self._watching = False
        self._asks_fast = False

    async def serve(self) -> None:
        """Answer requests until the file system is unmounted, ``stop`` or the caller cancels.

        Cancelled: requests in hand stay unanswered.
        """
        os.set_blocking(self.device, False)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._lead_on()

    def stop(self) -> None:
        """Read no more requests; ``serve`` returns once those in hand are answered."""
        self.stopped = True
        if self._leader is not None:
            self._leader.scope.cancel()

    def _lead_on(self) -> None:
        """Have somebody read requests, unless enough of them wait."""
        if self._leader is None and not self.stopped and len(self._waiting) < WAITING_AT_ONCE:
            self._leader = _Turn(self)
            self._nursery.start_soon(self._leader.run)

    def begin_waiting(self, turn: "_Turn") -> None:
        """The leader's request waits: somebody else is to lead."""
        self._leader = None
        self._waiting[turn.unique] = turn
        self.operations.counters.began[turn.unique] = turn.began_s
        self._lead_on()

    def end_waiting(self, turn: "_Turn") -> None:
        """It waits no more."""
        self._waiting.pop(turn.unique, None)
        self.operations.counters.began.pop(turn.unique, None)
        self._lead_on()

    def read(self) -> bytes | None:
        """A request; None if there is none now."""
        try:
            return os.read(self.device, MIN_BUFFER_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENODEV:
                self._unmounted()
            elif error.errno not in (errno.ENOENT, errno.EINTR):  # withdrawn meanwhile
                log.error("cannot read requests: %s", error)
                self._unmounted()
            return None

    async def next_soon(self) -> bytes | None:
        """What is asked for while the last answer is still being looked at; None if nothing is.

        To wait and to be woken costs more than it takes a walk or a small read to ask again. So
        what will be asked for is made meanwhile, and then it is looked for a little longer if
        the last request came as fast.
        """
        while await self.operations.prepare():
            if (message := self.read()) is not None or self.stopped:
                return message
        if self._asks_fast:
            until_s = time.perf_counter() + LINGER_S
            while time.perf_counter() < until_s and not self.stopped:
                if (message := self.read()) is not None:
                    return message
        return None

    async def wait(self) -> None:
        """Return when there is a request."""
        began_s = time.perf_counter()
        await trio.lowlevel.wait_readable(self.device)
        self._asks_fast = SEVERAL_CORES and time.perf_counter() - began_s < FAST_S

    def reply(self, unique: int, answer: Answer) -> None:
        """Answer a request."""
        head = OUT_HEADER.pack(OUT_HEADER.size + len(answer), 0, unique)
        self._send(unique, (head, answer) if answer else (head,))

    def refuse(self, unique: int, number: int) -> None:
        """Answer a request with an errno."""
        self._send(unique, (OUT_HEADER.pack(OUT_HEADER.size, -number, unique),))

    def _send(self, unique: int, parts: tuple[Answer, ...]) -> None:
        try:
            os.writev(self.device, parts)
        except OSError as error:
            if error.errno == errno.ENODEV:
                self._unmounted()
            elif error.errno != errno.ENOENT:  # who asked is gone
                log.error("the kernel does not take an answer: %s", error)
                if len(parts) > 1:
                    self.refuse(unique, errno.EIO)

    def _unmounted(self) -> None:
        """Nobody waits for an answer any more."""
        self.stopped = True
        self._nursery.cancel_scope.cancel()

    def on_other(self, opcode: int, unique: int, message: bytes) -> None:
        """Answer what no handler does."""
        if opcode == Opcode.INTERRUPT:
            turn = self._waiting.get(decode_interrupt(message))
            if turn is not None:
                turn.interrupted = True
                self._look_at(turn)
        elif opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET):  # these want no answer
            self.refuse(unique, errno.EROFS if opcode in CHANGES else errno.ENOSYS)

    def _look_at(self, turn: "_Turn") -> None:
        """Let go of a request whose process is being killed; if it is not, it may be soon."""
        if is_ending(turn.thread):
            turn.killed = True
            turn.scope.cancel()
        elif not self._watching:
            self._watching = True
            self._nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        while interrupted := [turn for turn in self._waiting.values() if turn.interrupted]:
            for turn in interrupted:
                self._look_at(turn)
            await trio.sleep(LOOK_EVERY_S)
        self._watching = False


class _Turn:
    """A task that leads until a request has to wait, and ends with that."""

    def __init__(self, server: Server) -> None:
        self.scope = trio.CancelScope()
        self.unique = 0
        """Number of the request in hand."""
        self.thread = 0
        """Who waits for it; 0: nobody whom we can see."""
        self.began_s = 0.0
        self.interrupted = False
        """Whether a signal came for who waits."""
        self.killed = False
        """Whether he is ending."""
        self._server = server
        self._waits = False
        self._operation = ""
        self._node = NodeId(0)

    async def run(self) -> None:
        """Answer requests until one has waited."""
        failure: Exception | None = None
        try:
            with self.scope:
                await self._lead()
        except Exception as error:
            if not self._waits:
                raise
            failure = error  # what came along with a cancellation
        if not self._waits:
            return
        if self.killed:
            self._server.refuse(self.unique, errno.EINTR)  # to nobody
        elif failure is not None:
            self._fail(first_cause(failure))
        elif self.scope.cancelled_caught:
            within_s = self._server.operations.deadline_s
            self._fail(DeadlineExceededError(f"no answer within {within_s:g} s"))
        self._server.end_waiting(self)

    async def _lead(self) -> None:
        server = self._server
        answered = 0
        while not server.stopped:
            message = server.read()
            if message is None and answered:
                message = await server.next_soon()
            if message is None:
                answered = 0
                await server.wait()
                continue
            try:
                await self._answer(message)
            except (FuseRequestError, struct.error) as error:
                log.error("a broken request: %s", error)
            if self._waits:
                return
            answered += 1
            if answered == ANSWERS_IN_A_ROW:
                answered = 0
                await trio.lowlevel.checkpoint()

    async def _answer(self, message: bytes) -> None:
        """Answer one request.

        Raises:
            FuseRequestError, struct.error: it is none.
        """
        server = self._server
        length, opcode, unique, node, _, _, thread, _, _ = IN_HEADER.unpack_from(message)
        if length != len(message):
            server.refuse(unique, errno.EIO)
            raise FuseRequestError(f"{len(message)} bytes, not {length}")
        known = server.handlers.get(opcode)
        if known is None:
            server.on_other(opcode, unique, message)
            return
        self.unique, self.thread, self._node = unique, thread, NodeId(node)
        self.began_s = trio.current_time()
        self._operation, handler = known
        server.operations.counters.operations[self._operation] += 1
        try:
            answer = await until_it_waits(handler(self._node, message), self._on_wait)
            server.reply(unique, answer)
        except ErrnoError as error:
            server.refuse(unique, error.errno)
        except Exception as error:  # noqa: BLE001 - one that got out would end the mount
            self._fail(first_cause(error))

    def _on_wait(self) -> None:
        self._waits = True
        self.scope.deadline = self.began_s + self._server.operations.deadline_s
        self._server.begin_waiting(self)

    def _fail(self, error: Exception) -> None:
        operations = self._server.operations
        number = operations.errno_for(self._operation, self._node, error, self.began_s)
        self._server.refuse(self.unique, number)
