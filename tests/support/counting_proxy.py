"""A TCP proxy on loopback that counts what a server says: traffic as the wire has it.

with counting_proxy(registry.host) as proxy:
    ...  # use proxy.host instead; proxy.received_bytes is all that came back, headers included
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

PIECE_BYTES = 1 << 16
IDLE_S = 120


@dataclass
class CountingProxy:
    """What went through."""

    host: str
    server: str
    """Where new connections go, as ``HOST:PORT``; may be changed."""
    received_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, length: int) -> None:
        """Add bytes that a server sent."""
        with self._lock:
            self.received_bytes += length


@contextlib.contextmanager
def counting_proxy(server: str) -> Iterator[CountingProxy]:
    """Pass connections on to ``server`` (``HOST:PORT``)."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            with contextlib.suppress(OSError):  # who hangs up first is not our business
                name, port = proxy.server.rsplit(":", 1)
                upstream = socket.create_connection((name, int(port)), timeout=IDLE_S)
                client.settimeout(IDLE_S)
                there = threading.Thread(target=carry, args=(client, upstream, lambda length: None))
                there.start()
                carry(upstream, client, proxy.count)
                there.join()
                upstream.close()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as listener:
        proxy = CountingProxy(f"127.0.0.1:{listener.server_address[1]}", server)
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()


def carry(source: socket.socket, target: socket.socket, count) -> None:
    """Copy until either side ends, then let both know."""
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE_BYTES):
            count(len(data))
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
