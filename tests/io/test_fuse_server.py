"""The loop that answers FUSE requests, with a socket in the place of the device."""

import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from lazyfs.errors import SourceUnavailableError
from lazyfs.fuse.counters import Counters
from lazyfs.fuse.errno_table import ErrnoError
from lazyfs.fuse.protocol import IN_HEADER, OUT_HEADER, Opcode
from lazyfs.fuse.server import ANSWERS_IN_A_ROW, WAITING_AT_ONCE, Handler, Server

LOOKUP, READ, GETATTR = Opcode.LOOKUP, Opcode.READ, Opcode.GETATTR


class Operations:
    """READ waits until it is let go, by its node; what others do, the node says."""

    def __init__(self, deadline_s: float = float("inf")) -> None:
        self.counters = Counters()
        self.deadline_s = deadline_s
        self.handlers: dict[int, Handler] = {READ: self.wait, GETATTR: self.answer}
        self.gates: dict[int, trio.Event] = {}
        self.failures: list[str] = []
        self.preparing: Callable[[], Awaitable[bool]] | None = None

    def errno_for(self, operation, node, error, began_s):
        self.failures.append(f"{operation} {node} {error!r}")
        return errno.EUCLEAN

    async def prepare(self):
        return await self.preparing() if self.preparing is not None else False

    async def wait(self, node, request):
        await self.gate(node).wait()
        return b"read %d" % node

    def gate(self, node):
        return self.gates.setdefault(node, trio.Event())

    async def answer(self, node, request):
        match node:
            case 404:
                raise ErrnoError(errno.ENOENT)
            case 500:
                raise ZeroDivisionError("a bug")
            case 501:
                return None
            case 502:
                await trio.lowlevel.checkpoint()
                raise ExceptionGroup("nursery", [SourceUnavailableError("gone")])
            case 503:
                return bytes(1 << 22)  # more than a socket takes
        return b"node %d" % node


class Kernel:
    """The other end."""

    def __init__(self, end: socket.socket) -> None:
        self.end = trio.socket.from_stdlib_socket(end)
        self.over = trio.Event()
        """Set when serving has ended."""

    async def ask(self, opcode: int, unique: int, node: int = 1, body: bytes = b"", thread=0):
        length = IN_HEADER.size + len(body)
        await self.end.send(IN_HEADER.pack(length, opcode, unique, node, 0, 0, thread, 0, 0) + body)

    async def interrupt(self, unique: int) -> None:
        await self.ask(Opcode.INTERRUPT, unique + 1, 0, struct.pack("=Q", unique))

    async def answer(self) -> tuple[int, int, bytes]:
        data = await self.end.recv(1 << 20)
        length, error, unique = OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[OUT_HEADER.size :]


@asynccontextmanager
async def serving(operations: Operations):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        server = Server(theirs.fileno(), operations)
        kernel = Kernel(ours)

        async def serve() -> None:
            await server.serve()
            kernel.over.set()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                yield server, kernel
                nursery.cancel_scope.cancel()


async def test_who_waits_does_not_stop_others():
    operations = Operations()
    async with serving(operations) as (_, kernel):
        for unique in range(100):
            await kernel.ask(READ, unique, unique)
        await kernel.ask(GETATTR, 1000, 7)
        assert await kernel.answer() == (1000, 0, b"node 7")
        assert operations.counters.in_flight == 100
        for unique in reversed(range(100)):
            operations.gate(unique).set()
            assert await kernel.answer() == (unique, 0, b"read %d" % unique)
        assert operations.counters.in_flight == 0
        assert operations.counters.operations == {"read": 100, "getattr": 1}


async def test_others_have_their_turn_while_requests_come_and_come():
    operations = Operations()
    async with serving(operations) as (_, kernel):
        for unique in range(3 * ANSWERS_IN_A_ROW):
            await kernel.ask(GETATTR, unique, unique)
        for unique in range(3 * ANSWERS_IN_A_ROW):
            assert (await kernel.answer())[0] == unique


async def test_what_will_be_asked_for_is_prepared_until_something_is_asked_for():
    operations = Operations()
    done: list[int] = []
    async with serving(operations) as (_, kernel):

        async def prepare() -> bool:
            if len(done) == 5:
                return False
            done.append(operations.counters.operations["getattr"])
            if len(done) == 3:
                await kernel.ask(GETATTR, 2)
            return True

        operations.preparing = prepare
        await kernel.ask(GETATTR, 1)
        assert (await kernel.answer())[0] == 1
        assert (await kernel.answer())[0] == 2
        await trio.testing.wait_all_tasks_blocked()
        assert done == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("node", "number"),
    [(404, errno.ENOENT), (500, errno.EUCLEAN), (501, errno.EUCLEAN), (502, errno.EUCLEAN)],
)
async def test_no_failure_ends_it(node, number):
    operations = Operations()
    async with serving(operations) as (_, kernel):
        await kernel.ask(GETATTR, 1, node)
        assert await kernel.answer() == (1, number, b"")
        assert len(operations.failures) == (0 if node == 404 else 1)
        await kernel.ask(GETATTR, 2)
        assert await kernel.answer() == (2, 0, b"node 1")


async def test_an_answer_that_the_kernel_does_not_take_becomes_an_error():
    async with serving(Operations()) as (_, kernel):
        await kernel.ask(GETATTR, 1, 503)
        assert await kernel.answer() == (1, errno.EIO, b"")


@pytest.mark.parametrize(
    ("opcode", "number"),
    [
        (Opcode.OPEN, errno.ENOSYS),
        (Opcode.OPENDIR, errno.ENOSYS),
        (Opcode.FLUSH, errno.ENOSYS),
        (4711, errno.ENOSYS),
        (Opcode.WRITE, errno.EROFS),
        (Opcode.SETATTR, errno.EROFS),
        (Opcode.TMPFILE, errno.EROFS),
    ],
)
async def test_what_no_handler_does(opcode, number):
    async with serving(Operations()) as (_, kernel):
        await kernel.ask(opcode, 1)
        assert await kernel.answer() == (1, number, b"")


async def test_requests_without_answer_and_broken_ones():
    async with serving(Operations()) as (_, kernel):
        await kernel.ask(Opcode.FORGET, 1, 9, bytes(8))
        await kernel.ask(Opcode.BATCH_FORGET, 2, 0, bytes(24))
        await kernel.ask(Opcode.INTERRUPT, 3, 0, b"short")
        await kernel.interrupt(4711)
        await kernel.end.send(b"no header")
        await kernel.end.send(IN_HEADER.pack(4000, GETATTR, 5, 1, 0, 0, 0, 0, 0))
        assert await kernel.answer() == (5, errno.EIO, b"")
        await kernel.ask(GETATTR, 6)
        assert await kernel.answer() == (6, 0, b"node 1")


async def test_a_deadline(autojump_clock):
    operations = Operations(deadline_s=3)
    async with serving(operations) as (_, kernel):
        before_s = trio.current_time()
        await kernel.ask(READ, 1)
        assert await kernel.answer() == (1, errno.EUCLEAN, b"")
        assert trio.current_time() == before_s + 3
        said = "DeadlineExceededError('no answer within 3 s')"
        assert operations.failures == [f"read 1 {said}"]


async def test_so_many_may_wait():
    operations = Operations()
    resent = 1 << 63
    async with serving(operations) as (_, kernel):
        for unique in range(WAITING_AT_ONCE):
            await kernel.ask(READ, resent | unique, unique)
        await kernel.ask(GETATTR, 4711)
        await trio.testing.wait_all_tasks_blocked()
        assert operations.counters.in_flight == WAITING_AT_ONCE
        operations.gate(7).set()
        assert await kernel.answer() == (resent | 7, 0, b"read 7")
        assert await kernel.answer() == (4711, 0, b"node 1")


async def test_a_signal_that_kills_nobody_changes_nothing():
    operations = Operations()
    async with serving(operations) as (_, kernel):
        await kernel.ask(READ, 1, 5, thread=os.getpid())
        await kernel.interrupt(1)
        await kernel.ask(GETATTR, 2)
        assert await kernel.answer() == (2, 0, b"node 1")
        operations.gate(5).set()
        assert await kernel.answer() == (1, 0, b"read 5")


async def test_stopping_waits_for_those_in_hand():
    operations = Operations()
    async with serving(operations) as (server, kernel):
        await kernel.ask(READ, 1, 5)
        await kernel.ask(GETATTR, 2)
        assert (await kernel.answer())[0] == 2
        server.stop()
        await kernel.ask(GETATTR, 3)
        operations.gate(5).set()
        assert await kernel.answer() == (1, 0, b"read 5")
        await kernel.over.wait()
        assert operations.counters.operations["getattr"] == 1
