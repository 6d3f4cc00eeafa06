"""Metrics over HTTP, on a Unix socket or a TCP port.

Scraping must not disturb the mount: few connections at once, each with a deadline, and the text
is made in a thread.
"""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h11
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lazyfs.errors import MountError
from lazyfs.mount.control import short_address
from lazyfs.mount.metricsaddress import TcpAddress, parse_address

MAX_CONNECTIONS = 8
ANSWER_WITHIN_S = 10.0
"""From the connection to the last byte of the answer."""

MAX_REQUEST_BYTES = 16 << 10
RECEIVE_BYTES = 4096
PATHS = (b"/metrics", b"/")


log = logging.getLogger(__name__)


class _Answer(NamedTuple):
    status: int
    media_type: str
    body: bytes


class _Snapshot(Collector):
    """Metrics that were gathered already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """As ``Collector.collect``."""
        return self._metrics


def listen(text: str) -> trio.SocketListener:
    """Begin to listen; a socket that a dead daemon has left is replaced.

    Args:
        text: as ``parse_address`` takes it.

    Raises:
        MountError: it cannot be done.
    """
    address = parse_address(text)
    try:
        bound = _tcp(address) if isinstance(address, TcpAddress) else _unix(address)
    except OSError as error:
        raise MountError(f"cannot serve metrics at {text}: {error.strerror or error}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(bound))


def leave(text: str) -> None:
    """Remove the file of a socket that is not served any more; no matter if it is gone."""
    address = parse_address(text)
    if isinstance(address, Path):
        with contextlib.suppress(OSError):
            address.unlink()


def _tcp(address: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server((address.host, address.port), family=family)


def _unix(path: Path) -> socket.socket:
    """A socket in a file of mode 0600.

    Raises:
        OSError: somebody listens there, or it is something else.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(None, "there is something that is not a socket")
        if _is_served(path):
            raise FileExistsError(None, "another process listens there")
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_address(path) as short:
            before = os.umask(0o177)
            try:
                bound.bind(short)
            finally:
                os.umask(before)
        bound.listen()
    except BaseException:
        bound.close()
        raise
    return bound


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, short_address(path) as short:
        probe.setblocking(False)
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its queue is full
            return True
    return True


class Scraped:
    """Answers scrapes."""

    def __init__(self, gather: Callable[[], list[Metric]]) -> None:
        """Serve what ``gather`` gives; it is called on the event loop and must be quick."""
        self._gather = gather
        self._connections = 0
        self._one_at_a_time = trio.Lock()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Answer until cancelled."""
        await trio.serve_listeners(self._handle, [listener])

    async def _handle(self, stream: trio.SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS:
            return
        self._connections += 1
        try:
            with (
                contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError),
                trio.move_on_after(ANSWER_WITHIN_S),
            ):
                await self._talk(stream)
        except Exception:  # a strange request or a bug in a figure must not end the mount
            log.exception("a request for metrics could not be answered")
        finally:
            self._connections -= 1

    async def _talk(self, stream: trio.SocketStream) -> None:
        """Take one request, and answer it."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(RECEIVE_BYTES))
        if not isinstance(event, h11.Request):
            return
        answer = await self._answer(event)
        headers = [
            ("Content-Type", answer.media_type),
            ("Content-Length", str(len(answer.body))),
            ("Connection", "close"),
        ]
        said = connection.send(h11.Response(status_code=answer.status, headers=headers))
        body = answer.body if event.method != b"HEAD" else b""
        await stream.send_all((said or b"") + body)

    async def _answer(self, request: h11.Request) -> _Answer:
        if request.method not in (b"GET", b"HEAD"):
            return _Answer(405, "text/plain", b"only GET\n")
        if request.target.partition(b"?")[0] not in PATHS:
            return _Answer(404, "text/plain", b"the metrics are at /metrics\n")
        accept = dict(request.headers).get(b"accept", b"").decode("ascii", "replace")
        encode, media_type = choose_encoder(accept)
        async with self._one_at_a_time:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Snapshot(self._gather()))
            body = await trio.to_thread.run_sync(encode, registry, abandon_on_cancel=True)
        return _Answer(200, media_type, body)
