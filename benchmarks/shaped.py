"""Runs the shaping proxy, reads its counts, and measures whether it does what it was asked for."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.shaper import LOOPBACK, Counts, Line

ECHOES = 40
TRANSFER_S = 1.0
UNSHAPED_BYTES = 1 << 29
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ShapedLine:
    """A shaping proxy that runs."""

    host: str
    """``127.0.0.1:PORT``: what to name instead of the server."""
    process: subprocess.Popen[str]

    def counts(self) -> Counts:
        """What has gone over the line so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Counts(**json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def shaped_line(line: Line, to: str, port: int = 0) -> Iterator[ShapedLine]:
    """Run the proxy in a process of its own; it ends with the block, or with this process."""
    words = [sys.executable, "-m", "benchmarks.shaper", "--stdin", "--to", to]
    words += ["--rtt", f"{line.rtt_s * 1e6:.0f}us", "--port", str(port)]
    if line.bits_per_s is not None:
        words += ["--bandwidth", f"{line.bits_per_s:.0f}bit"]
    pipe = subprocess.PIPE
    # A session of its own: Ctrl-C goes to those who use the line, it ends after them.
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield ShapedLine(process.stdout.readline().strip(), process)
        finally:
            process.stdin.close()
            process.kill()


@dataclass(frozen=True)
class Calibration:
    """What a line was found to do."""

    rtt_s: float
    """Median of some exchanges of one byte in a connection that stands."""
    set_up_s: float
    """To connect and exchange a byte: two round trips."""
    bits_per_s: float
    """Of one connection, the first round trip left out."""


def calibrated(line: Line) -> Calibration:
    """Measure a line between two ends in this process."""
    with (
        socket.create_server((LOOPBACK, 0)) as listener,
        shaped_line(line, f"{LOOPBACK}:{listener.getsockname()[1]}") as shaped,
    ):
        host, _, port = shaped.host.partition(":")
        began = time.perf_counter()
        with socket.create_connection((host, int(port))) as client, listener.accept()[0] as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _exchange(client, server)
            set_up_s = time.perf_counter() - began
            rtt_s = median(_exchange(client, server) for _ in range(ECHOES))
            count = UNSHAPED_BYTES
            if line.bytes_per_s is not None:
                count = int(line.bytes_per_s * TRANSFER_S)
            return Calibration(rtt_s, set_up_s, _transfer(client, server, count))


def _exchange(client: socket.socket, server: socket.socket) -> float:
    began = time.perf_counter()
    client.sendall(b"x")
    server.recv(1)
    server.sendall(b"x")
    client.recv(1)
    return time.perf_counter() - began


def _transfer(client: socket.socket, server: socket.socket, count: int) -> float:
    sender = threading.Thread(target=server.sendall, args=(bytes(count),))
    sender.start()
    buffer = bytearray(BUFFER_BYTES)
    count -= client.recv_into(buffer, 1)
    began, left = time.perf_counter(), count
    while left:
        left -= client.recv_into(buffer)
    sender.join()
    return count * 8 / (time.perf_counter() - began)


def described(line: Line, found: Calibration) -> str:
    """A sentence for people."""
    asked = "all" if line.bits_per_s is None else f"{line.bits_per_s / 1e6:g}"
    return (
        f"asked for {line.rtt_s * 1e3:g} ms and {asked} Mbit/s: found {found.rtt_s * 1e3:.2f} ms, "
        f"{found.bits_per_s / 1e6:.0f} Mbit/s; first exchange {found.set_up_s * 1e3:.2f} ms"
    )
