"""A TCP proxy that shapes what goes through: delays, narrows, stalls, resets and corrupts it.

    async with shaping_proxy(registry.host) as proxy:
        proxy.shape = Shape(delay_s=0.2, bytes_per_s=64 << 10)
        ...  # use proxy.host instead; the shape may change at any time

Shapes hold for what the server says; what the client says goes through at once. They hold for
bytes, whatever they are: below TLS as well.
"""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

PIECE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Shape:
    """What is done to each connection; positions count bytes of the server from its beginning."""

    delay_s: float = 0.0
    """Each piece comes so much later, as on a long line."""
    bytes_per_s: float = float("inf")
    stall_at: int | None = None
    """Nothing comes from there on, and the connection stays."""
    reset_at: int | None = None
    """The connection is reset there."""
    corrupt_at: int | None = None
    """One bit is flipped there, and again each so many bytes further on."""
    swallow: bool = False
    """Connections are taken, and nothing is passed on."""


@dataclass
class ShapingProxy:
    """A proxy that runs."""

    host: str
    server: str
    """Where new connections go, as ``HOST:PORT``; may be changed."""
    shape: Shape = Shape()
    """For connections that exist as well as for new ones."""
    hit: int = 0
    """How often it stalled, reset or corrupted."""
    most: int | None = None
    """After so many hits all goes through unharmed; None: never."""

    def may_hit(self) -> bool:
        """Count one more harm, if there may be one."""
        if self.most is not None and self.hit >= self.most:
            return False
        self.hit += 1
        return True


@contextlib.asynccontextmanager
async def shaping_proxy(server: str) -> AsyncIterator[ShapingProxy]:
    """Pass connections on to ``server`` (``HOST:PORT``)."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = ShapingProxy(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", server)

        async def handle(client: trio.SocketStream) -> None:
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                async with client:
                    await _carry(proxy, client)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


async def _carry(proxy: ShapingProxy, client: trio.SocketStream) -> None:
    if proxy.shape.swallow:
        await trio.sleep_forever()
    name, port = proxy.server.rsplit(":", 1)
    upstream = await trio.open_tcp_stream(name, int(port))
    async with upstream, trio.open_nursery() as pumps:
        pumps.start_soon(_forward, client, upstream, pumps.cancel_scope)
        await _shape(proxy, upstream, client)
        pumps.cancel_scope.cancel()


async def _forward(
    client: trio.SocketStream, upstream: trio.SocketStream, everything: trio.CancelScope
) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while piece := await client.receive_some(PIECE_BYTES):
            await upstream.send_all(bytes(piece))
    everything.cancel()


async def _shape(
    proxy: ShapingProxy, upstream: trio.SocketStream, client: trio.SocketStream
) -> None:
    """Hand on what the server says until either side ends or the shape does."""
    position = 0
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while piece := bytearray(await upstream.receive_some(PIECE_BYTES)):
            shape = proxy.shape
            end = position + len(piece)
            await trio.sleep(shape.delay_s + len(piece) / shape.bytes_per_s)
            if _crossed(shape.stall_at, end) and proxy.may_hit():
                await trio.sleep_forever()
            if _crossed(shape.reset_at, end) and proxy.may_hit():
                await client.send_all(bytes(piece[: len(piece) // 2]))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if shape.corrupt_at:
                first = -position % shape.corrupt_at
                if first < len(piece) and position + first > 0 and proxy.may_hit():
                    for place in range(first, len(piece), shape.corrupt_at):
                        piece[place] ^= 0x08
            await client.send_all(bytes(piece))
            position = end


def _crossed(place: int | None, end: int) -> bool:
    return place is not None and end > place
