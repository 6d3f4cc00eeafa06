"""An HTTP server that answers what a test tells it to, lies and half answers included.

def answer(request: Request) -> Reply:
    return Reply(206, b"abc", {"Content-Range": "bytes 0-2/3"})

async with scripted_server(answer) as server:
    ...  # server.host is "127.0.0.1:PORT", server.requests what was asked
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import h11
import trio

PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    """What ``Content-Length`` says; None: the truth."""
    chunked: bool = False
    """Send with chunked coding, which promises no length."""
    cut: bool = False
    """Hang up behind the bytes of ``body``."""
    hang: bool = False
    """Never answer."""
    stall: bool = False
    """Send no more behind the bytes of ``body``, but keep the connection."""
    reset: bool = False
    """Reset the connection (RST) behind the bytes of ``body``."""
    drip_s: float = 0.0
    """Send the body byte by byte, each after so long."""
    wait_s: float = 0.0
    """Answer after so long."""
    raw: bytes | None = None
    """Send these bytes for an answer, then hang up."""


@dataclass
class ScriptedServer:
    host: str
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0
    """Of bodies that go in one piece; what waits in the kernel counts as sent."""

    def count(self, method: str, path: str) -> int:
        return sum(1 for r in self.requests if (r.method, r.path) == (method, path))


@contextlib.asynccontextmanager
async def scripted_server(
    answer: Callable[[Request], Reply],
    address: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> AsyncIterator[ScriptedServer]:
    """Serve on ``port``, or on a free one."""
    async with _single_errors(), trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=address)
        port = listeners[0].socket.getsockname()[1]
        server = ScriptedServer(f"{address}:{port}")

        async def handle(plain: trio.SocketStream) -> None:
            server.connections += 1
            # A client that hangs up, also in the handshake, is its own business.
            with contextlib.suppress(
                trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError
            ):
                stream = (
                    trio.SSLStream(plain, tls, server_side=True, https_compatible=True)
                    if tls
                    else plain
                )
                async with stream:
                    while request := await _receive(stream):
                        server.requests.append(request)
                        if not await _send(server, stream, request, answer(request)):
                            break

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _single_errors() -> AsyncIterator[None]:
    """Let an error of the block come out as it is, not in the nursery's group."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _receive(stream: trio.abc.Stream) -> Request | None:
    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body: list[bytes] = []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = {k.decode().lower(): v.decode() for k, v in head.headers}
            return Request(head.method.decode(), head.target.decode(), headers, b"".join(body))
        else:
            return None


async def _send(
    server: ScriptedServer, stream: trio.abc.Stream, request: Request, reply: Reply
) -> bool:
    """Send the reply as it is; False when the connection must end."""
    if reply.hang:
        await trio.sleep_forever()
    await trio.sleep(reply.wait_s)
    if reply.raw is not None:
        await stream.send_all(reply.raw)
        return False
    headers = dict(reply.headers)
    if reply.chunked:
        headers["Transfer-Encoding"] = "chunked"
    else:
        length = len(reply.body) if reply.length is None else reply.length
        headers.setdefault("Content-Length", str(length))
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{k}: {v}" for k, v in headers.items())]
    await stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n")
    if request.method == "HEAD":
        return True
    if reply.chunked:
        if reply.body:
            await stream.send_all(b"%x\r\n%s\r\n" % (len(reply.body), reply.body))
        await stream.send_all(b"0\r\n\r\n")
    elif reply.drip_s:
        for byte in reply.body:
            await trio.sleep(reply.drip_s)
            await stream.send_all(bytes([byte]))
    else:
        for start in range(0, len(reply.body), PIECE_BYTES):
            piece = reply.body[start : start + PIECE_BYTES]
            await stream.send_all(piece)
            server.sent_bytes += len(piece)
    if reply.stall:
        await trio.sleep_forever()
    if reply.reset:
        _reset(stream)
    return not (reply.cut or reply.reset)


def _reset(stream: trio.abc.Stream) -> None:
    """Let the next close send RST instead of FIN."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
