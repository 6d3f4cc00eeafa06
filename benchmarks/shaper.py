"""A TCP proxy on loopback that makes a line of it: so much delay, so much bandwidth.

    python -m benchmarks.shaper --rtt 50ms --bandwidth 100Mbit --to 127.0.0.1:5000

Bytes spend half of the round-trip time in each direction, and the first ones of a connection wait
a whole one besides, for its set-up. The bandwidth is that from the server to its clients; all
connections share it, each piece by piece in its turn. There is no slow start and no loss: a line
that is warm and good, which is kind to those who fetch much. What a client does not read comes to
a stop in bounded buffers, and so does the server then.

It counts bytes, connections and HTTP/1.1 request lines (not those inside of TLS).
"""

import argparse
import asyncio
import contextlib
import json
import re
import selectors
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
CONNECTIONS_MAX = 400
"""At once; with both ends of each, select(2) can still watch them."""
PIECE_BYTES = range(4 << 10, (256 << 10) + 1)
"""The least and the most that has the line to itself."""
PIECE_S = 0.002
"""As much of the line's time a piece takes, within these limits."""
QUEUE_S = 0.03
"""As much of the line's time may wait before it, of each connection: the time that we may be
late, with nothing lost."""
UNSHAPED_WINDOW_BYTES = 8 << 20
REQUEST_LINE_END = b" HTTP/1.1\r\n"
TIMER_SLACK = Path("/proc/self/timerslack_ns")
UNITS_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Line(NamedTuple):
    """What a line is like."""

    rtt_s: float = 0.0
    bits_per_s: float | None = None
    """From the server to the clients; None: as much as there is."""

    @property
    def bytes_per_s(self) -> float | None:
        """The bandwidth in bytes."""
        return self.bits_per_s and self.bits_per_s / 8

    @property
    def piece_bytes(self) -> int:
        """As much as has the line to itself."""
        wanted = PIECE_BYTES[-1] if self.bytes_per_s is None else self.bytes_per_s * PIECE_S
        return int(min(max(wanted, PIECE_BYTES[0]), PIECE_BYTES[-1]))

    @property
    def window_bytes(self) -> int:
        """As much of a connection as may be in the proxy, in one direction."""
        if self.bytes_per_s is None:
            return UNSHAPED_WINDOW_BYTES
        return 2 * self.piece_bytes + int(self.bytes_per_s * (self.rtt_s + QUEUE_S))


@dataclass
class Counts:
    """What has gone over the line."""

    down_bytes: int = 0
    up_bytes: int = 0
    connections: int = 0
    requests: int = 0


class Flow:
    """One direction of a connection: a queue of pieces, each with the time when it arrives."""

    def __init__(self, window_bytes: int) -> None:
        self.waiting: deque[bytes] = deque()
        """Before the link, if there is one."""
        self._window_bytes = window_bytes
        self._held_bytes = 0
        self._travelling: deque[tuple[bytes, float]] = deque()
        self._changed = asyncio.Event()

    async def take(self, piece: bytes) -> None:
        """Wait until there is room, and count a piece as held."""
        while self._held_bytes >= self._window_bytes:
            await self._wait()
        self._held_bytes += len(piece)

    def send(self, piece: bytes, arrives_at: float) -> None:
        """Put a piece on its way; an empty one is the end."""
        self._travelling.append((piece, arrives_at))
        self._changed.set()

    async def arrive(self, target: socket.socket) -> None:
        """Write pieces to a socket when their time has come, up to the end."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._travelling:
                await self._wait()
            piece, arrives_at = self._travelling.popleft()
            if (early_s := arrives_at - loop.time()) > 0:
                await asyncio.sleep(early_s)
            if not piece:
                target.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(target, piece)
            self._held_bytes -= len(piece)
            self._changed.set()

    async def _wait(self) -> None:
        # Reader and writer both wait for any change, each looks for its own: nobody awaits
        # between its look and its wait.
        self._changed.clear()
        await self._changed.wait()


class Link:
    """The bandwidth, shared by all flows that have something to send, in turn."""

    def __init__(self, line: Line, passed: Callable[[int], None]) -> None:
        self._line = line
        self._passed = passed
        self._turns: deque[Flow] = deque()
        self._something = asyncio.Event()

    def offer(self, flow: Flow, piece: bytes) -> None:
        """Queue a piece; an empty one is the end of its flow."""
        if self._line.bytes_per_s is None:
            self._pass(flow, piece, asyncio.get_running_loop().time())
            return
        if not flow.waiting:
            self._turns.append(flow)
        flow.waiting.append(piece)
        self._something.set()

    async def run(self) -> None:
        """Let pieces pass, one after the other, for ever."""
        if (bytes_per_s := self._line.bytes_per_s) is None:
            return
        loop = asyncio.get_running_loop()
        free_at = 0.0
        while True:
            if not self._turns:
                self._something.clear()
                await self._something.wait()
                free_at = max(free_at, loop.time())
            flow = self._turns.popleft()
            if not flow.waiting:
                continue  # its connection has ended
            piece = flow.waiting.popleft()
            if flow.waiting:
                self._turns.append(flow)
            # Where we are late the next piece begins in the past: no bandwidth is lost.
            free_at += len(piece) / bytes_per_s
            self._pass(flow, piece, free_at)
            if (early_s := free_at - loop.time()) > 0:
                await asyncio.sleep(early_s)

    def _pass(self, flow: Flow, piece: bytes, at: float) -> None:
        self._passed(len(piece))
        flow.send(piece, at + self._line.rtt_s / 2)


class Shaper:
    """The proxy: everything that it accepts goes to ``to``."""

    def __init__(self, line: Line, to: tuple[str, int]) -> None:
        self.counts = Counts()
        self._line = line
        self._to = to
        self._link = Link(line, self._count_down)

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(CONNECTIONS_MAX)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            while True:
                await places.acquire()
                client, _ = await loop.sock_accept(listener)
                task = tasks.create_task(self._connection(client, loop.time()))
                task.add_done_callback(lambda _: places.release())

    async def _connection(self, client: socket.socket, accepted_at: float) -> None:
        self.counts.connections += 1
        up, down = Flow(self._line.window_bytes), Flow(self._line.window_bytes)
        server = socket.socket()
        try:
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(server, self._to)
            set_up_at = accepted_at + self._line.rtt_s
            async with asyncio.TaskGroup() as tasks:
                for part in (
                    self._read_up(client, up, set_up_at),
                    up.arrive(server),
                    self._read_down(server, down),
                    down.arrive(client),
                ):
                    tasks.create_task(part)
        except* OSError:
            pass  # an end has gone, and with it all that was on its way
        finally:
            down.waiting.clear()
            client.close()
            server.close()

    async def _read_up(self, client: socket.socket, flow: Flow, set_up_at: float) -> None:
        loop = asyncio.get_running_loop()
        last = b""
        piece = b"first"
        while piece:
            piece = await loop.sock_recv(client, PIECE_BYTES[-1])
            at = max(loop.time(), set_up_at) + self._line.rtt_s / 2
            await flow.take(piece)
            seen = last + piece
            self.counts.requests += seen.count(REQUEST_LINE_END)
            last = seen[len(seen) - len(REQUEST_LINE_END) + 1 :]
            self.counts.up_bytes += len(piece)
            flow.send(piece, at)

    async def _read_down(self, server: socket.socket, flow: Flow) -> None:
        loop = asyncio.get_running_loop()
        piece = b"first"
        while piece:
            piece = await loop.sock_recv(server, self._line.piece_bytes)
            await flow.take(piece)
            self._link.offer(flow, piece)

    def _count_down(self, count: int) -> None:
        self.counts.down_bytes += count


def duration_s(text: str) -> float:
    """Seconds of a word such as ``50ms``."""
    return _amount(text, r"us|ms|s", UNITS_S)


def bandwidth(text: str) -> float:
    """Bits a second of a word such as ``100Mbit``."""
    return _amount(text.lower().removesuffix("bit"), r"[kmg]|", UNITS_BITS)


def _amount(text: str, units: str, factors: dict[str, float]) -> float:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)({units})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as 50ms, 100Mbit")
    return float(match[1]) * factors.get(match[2], 1.0)


def address(text: str) -> tuple[str, int]:
    """Host and port of a word such as ``127.0.0.1:5000``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


async def _answer(shaper: Shaper) -> None:
    """Print the counts for each line of the standard input, up to its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(asdict(shaper.counts)), flush=True)


async def _serve(shaper: Shaper, listener: socket.socket, *, answering: bool) -> None:
    serving = asyncio.create_task(shaper.serve(listener))
    await (_answer(shaper) if answering else serving)
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shaper", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rtt", type=duration_s, default=0.0, help="such as 50ms")
    parser.add_argument("--bandwidth", type=bandwidth, help="such as 100Mbit; default: all")
    parser.add_argument("--to", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0, help="to listen on; default: any")
    parser.add_argument(
        "--stdin",
        action="store_true",
        help="print the counts for each line of the standard input, and end with it",
    )
    args = parser.parse_args()
    # The kernel may be 50 us late with timers, which is much of half of 0.5 ms.
    TIMER_SLACK.write_text("1")
    with socket.create_server((LOOPBACK, args.port), backlog=CONNECTIONS_MAX) as listener:
        listener.setblocking(False)
        print(f"{LOOPBACK}:{listener.getsockname()[1]}", flush=True)
        # asyncio has epoll(7) wait in whole milliseconds.
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        shaper = Shaper(Line(args.rtt, args.bandwidth), args.to)
        try:
            loop.run_until_complete(_serve(shaper, listener, answering=args.stdin))
        except KeyboardInterrupt:
            print(json.dumps(asdict(shaper.counts)))
        finally:
            loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
