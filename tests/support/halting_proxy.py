"""An HTTP proxy on loopback that halts at one write, so that a test can kill the client there.

async with halting_proxy(registry.host) as proxy:
    proxy.halt_at = 3, Moment.INSIDE   # in the middle of the fourth request that writes
    ...                                # use proxy.host instead
    await proxy.halted.wait()          # from here on nothing goes through any more
"""

import contextlib
import enum
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import trio

PIECE_BYTES = 64 << 10
WRITES = ("POST", "PATCH", "PUT")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Moment(enum.Enum):
    BEFORE = "before the server has seen anything of it"
    INSIDE = "when the server has half of the body"
    AFTER = "when the server has answered, which the client does not hear"


@dataclass
class HaltingProxy:
    host: str
    server: str
    halt_at: tuple[int, Moment] | None = None
    halted: trio.Event = field(default_factory=trio.Event)
    writes: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and length of the body of each."""

    async def halt(self) -> None:
        self.halted.set()
        await trio.sleep_forever()

    async def forward(self, sink: trio.SocketStream, data: bytes) -> None:
        if self.halted.is_set():
            await trio.sleep_forever()
        await sink.send_all(data)

    def moment_of(self, number: int | None) -> Moment | None:
        """When to halt in a write, if it is the one to halt at."""
        if self.halt_at is None or number != self.halt_at[0]:
            return None
        return self.halt_at[1]


@contextlib.asynccontextmanager
async def halting_proxy(server: str) -> AsyncIterator[HaltingProxy]:
    """Pass connections on to ``server`` (``HOST:PORT``); the end of the block breaks them all."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = HaltingProxy(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", server)

        async def handle(client: trio.SocketStream) -> None:
            name, port = server.rsplit(":", 1)
            upstream = await trio.open_tcp_stream(name, int(port))
            async with client, upstream, trio.open_nursery() as pumps:
                connection = _Connection(proxy, client, upstream)
                pumps.start_soon(connection.answers)
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await connection.requests()
                pumps.cancel_scope.cancel()

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


class _Connection:
    def __init__(
        self, proxy: HaltingProxy, client: trio.SocketStream, upstream: trio.SocketStream
    ) -> None:
        self._proxy, self._client, self._upstream = proxy, client, upstream
        self._deaf = False

    async def requests(self) -> None:
        """What the client says: whole requests, one after the other."""
        proxy, pending = self._proxy, b""
        while True:
            while b"\r\n\r\n" not in pending:
                piece = await self._client.receive_some(PIECE_BYTES)
                if not piece:
                    return
                pending += piece
            head, _, pending = pending.partition(b"\r\n\r\n")
            method, path = head.decode("latin-1").split(" ", 2)[:2]
            length = int(found[1]) if (found := _LENGTH.search(head)) else 0
            number = None
            if method in WRITES:
                number = len(proxy.writes)
                proxy.writes.append((method, path, length))
            moment = proxy.moment_of(number)
            if moment is Moment.BEFORE:
                await proxy.halt()
            self._deaf = moment is Moment.AFTER
            await proxy.forward(self._upstream, head + b"\r\n\r\n")
            stop = length // 2 if moment is Moment.INSIDE else length
            pending = await self._body(pending, stop)
            if moment is Moment.INSIDE:
                await proxy.halt()

    async def _body(self, pending: bytes, length: int) -> bytes:
        """Pass ``length`` bytes on; what came beyond them."""
        while True:
            data, pending = pending[:length], pending[length:]
            if data:
                await self._proxy.forward(self._upstream, data)
            length -= len(data)
            if not length:
                return pending
            pending = await self._client.receive_some(PIECE_BYTES)
            if not pending:
                raise trio.ClosedResourceError

    async def answers(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while piece := await self._upstream.receive_some(PIECE_BYTES):
                if self._deaf:
                    await self._proxy.halt()
                await self._proxy.forward(self._client, bytes(piece))
            await self._client.send_eof()
