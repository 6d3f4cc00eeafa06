"""A TCP proxy on loopback in a thread of its own, that disturbs what passes at random.

with faulty_proxy(registry.host, seed=1) as proxy:
    ...                      # use proxy.host; proxy.faults counts what was done
    proxy.quiet = True       # from now on nothing is disturbed

Faults come in weathers: from calm to a storm in which every third request is disturbed, and
outages, in which nobody gets through.
"""

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import trio

PIECE_BYTES = 64 << 10
CORRUPTIBLE_BYTES = 4096
"""A piece that is longer has its second half in a body, behind whatever headers there are."""

LINGER_NOT = struct.pack("ii", 1, 0)
"""For ``SO_LINGER``: closing sends a reset."""

REFUSALS = {
    "500": b"500 Internal Server Error",
    "502": b"502 Bad Gateway",
    "503": b"503 Service Unavailable",
    "429": b"429 Too Many Requests\r\nRetry-After: 1",
}
IN_BODIES = ("stall", "cut", "corrupt")
FAULTS = ("delay", "reset", *REFUSALS, *IN_BODIES)

WEATHERS = {"calm": 0.02, "rain": 0.1, "storm": 0.33, "outage": 1.0}
"""Share of the requests that are disturbed."""
WEATHER_WEIGHTS = (4, 4, 2, 1)
WEATHER_S = (2.0, 6.0)
OUTAGE_S = (0.5, 3.0)
DELAY_S = (0.05, 1.0)
STALL_S = (2.0, 20.0)
LOOK_EVERY_S = 0.02


@dataclass
class FaultyProxy:
    """What it does, and what it did."""

    server: str
    chance: random.Random
    host: str = ""
    quiet: bool = False
    weather: str = "calm"
    held: bytes | None = None
    """Requests that contain this wait for as long as it stays so."""
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def draw(self) -> str | None:
        """The fault for the next request, if any."""
        self.requests += 1
        if self.quiet or self.chance.random() >= WEATHERS[self.weather]:
            return None
        fault = "outage" if self.weather == "outage" else self.chance.choice(FAULTS)
        self.faults[fault] += 1
        return fault


@contextlib.contextmanager
def faulty_proxy(server: str, *, seed: int) -> Iterator[FaultyProxy]:
    """Stand before ``server`` (HOST:PORT) until the block ends."""
    proxy = FaultyProxy(server, random.Random(seed))
    started = threading.Event()
    ending: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def run() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_change_weather, proxy)
            ending.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            started.set()
            await trio.serve_listeners(partial(_connection, proxy), listeners)

    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        [(token, scope)] = ending
        token.run_sync_soon(scope.cancel)
        thread.join()


async def _change_weather(proxy: FaultyProxy) -> None:
    while True:
        [proxy.weather] = proxy.chance.choices(list(WEATHERS), WEATHER_WEIGHTS)
        await trio.sleep(
            proxy.chance.uniform(*(OUTAGE_S if proxy.weather == "outage" else WEATHER_S))
        )


class _Connection:
    """One connection of a client and its twin to the server."""

    def __init__(
        self, proxy: FaultyProxy, client: trio.SocketStream, upstream: trio.SocketStream
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream = upstream
        self._sending = trio.Lock()
        self._fault: str | None = None
        """For the body of the answer that comes now."""

    async def requests(self) -> None:
        """Pass requests on (the client writes each at once), or don't."""
        while piece := bytes(await self._client.receive_some(PIECE_BYTES)):
            while self._proxy.held is not None and self._proxy.held in piece:
                await trio.sleep(LOOK_EVERY_S)
            fault = self._proxy.draw()
            if fault in REFUSALS:
                head = b"HTTP/1.1 " + REFUSALS[fault] + b"\r\nContent-Length: 0\r\n\r\n"
                await self._send(head)
                continue
            if fault in ("reset", "outage"):
                self._reset()
                return
            if fault == "delay":
                await trio.sleep(self._proxy.chance.uniform(*DELAY_S))
            self._fault = fault if fault in IN_BODIES else None
            await self._upstream.send_all(piece)

    async def answers(self) -> None:
        """Pass answers on, or less, or other bytes."""
        while piece := bytes(await self._upstream.receive_some(PIECE_BYTES)):
            if self._fault is not None and len(piece) > CORRUPTIBLE_BYTES:
                fault, self._fault = self._fault, None
                half = len(piece) // 2
                if fault == "corrupt":
                    changed = bytes([piece[half] ^ 0x40])
                    piece = piece[:half] + changed + piece[half + 1 :]
                else:
                    await self._send(piece[:half])
                    piece = piece[half:]
                if fault == "cut":
                    self._reset()
                    return
                if fault == "stall":
                    await trio.sleep(self._proxy.chance.uniform(*STALL_S))
            await self._send(piece)

    async def _send(self, data: bytes) -> None:
        # The client may have all of an answer, and ask on, before we know that it was sent.
        async with self._sending:
            await self._client.send_all(data)

    def _reset(self) -> None:
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)


async def _connection(proxy: FaultyProxy, client: trio.SocketStream) -> None:
    name, port = proxy.server.rsplit(":", 1)
    async with client:
        try:
            upstream = await trio.open_tcp_stream(name, int(port))
        except OSError:
            return
        connection = _Connection(proxy, client, upstream)

        async def pump(pump_one) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await pump_one()
            pumps.cancel_scope.cancel()

        async with upstream, trio.open_nursery() as pumps:
            pumps.start_soon(pump, connection.answers)
            pumps.start_soon(pump, connection.requests)
