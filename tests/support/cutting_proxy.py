"""A TCP proxy on loopback that breaks connections, in the middle of what a client sends.

async with cutting_proxy(registry.host) as proxy:
    proxy.cut_after = 100_000      # bytes from the client; then the connection is reset, once
    ...                            # use proxy.host instead
"""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

PIECE_BYTES = 16 << 10


@dataclass
class CuttingProxy:
    host: str
    server: str
    cut_after: int | None = None
    sent_bytes: int = 0
    """What clients have sent, all in all."""
    cuts: int = 0


@contextlib.asynccontextmanager
async def cutting_proxy(server: str) -> AsyncIterator[CuttingProxy]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = CuttingProxy(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", server)

        async def handle(client: trio.SocketStream) -> None:
            name, port = proxy.server.rsplit(":", 1)
            upstream = await trio.open_tcp_stream(name, int(port))
            async with client, upstream, trio.open_nursery() as pumps:
                pumps.start_soon(_pump, proxy, upstream, client, pumps.cancel_scope, False)
                await _pump(proxy, client, upstream, pumps.cancel_scope, True)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


async def _pump(
    proxy: CuttingProxy,
    source: trio.SocketStream,
    sink: trio.SocketStream,
    scope: trio.CancelScope,
    from_client: bool,
) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while piece := await source.receive_some(PIECE_BYTES):
            await sink.send_all(bytes(piece))
            if not from_client:
                continue
            proxy.sent_bytes += len(piece)
            if proxy.cut_after is not None and proxy.sent_bytes >= proxy.cut_after:
                proxy.cut_after = None
                proxy.cuts += 1
                source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
    scope.cancel()
