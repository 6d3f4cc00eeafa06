"""Servers of the suite: they run in a thread of their own, and scripts that block command them."""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.support.fake_registry import FakeRegistry
from tests.support.http_server import Reply, Request, scripted_server

Answer = Callable[[Request], Reply]
_Value = TypeVar("_Value")


@dataclass
class RegistryServer:
    """A registry in memory that can be broken, stopped and started again at the same address."""

    registry: FakeRegistry
    servers: "Servers"
    answer: Answer
    tls: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    requests: list[Request] = field(default_factory=list)
    """All that were asked while it ran."""
    _port: int = 0
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def host(self) -> str:
        """Its address, also while it does not run."""
        return f"{self.address}:{self._port}"

    def start(self) -> None:
        """Listen, at the same port as before."""
        opened = scripted_server(self.answer, self.address, self.tls, self._port)
        server = self._running.enter_context(self.servers.running(opened))
        self._port = int(server.host.rpartition(":")[2])
        server.requests = self.requests
        self.registry.server = server

    def stop(self) -> None:
        """Close all connections and listen no more; twice does no harm."""
        self._running.close()

    def blob_requests(self) -> list[Request]:
        """The requests for blobs so far."""
        return [request for request in self.requests if "/blobs/" in request.path]


class Servers:
    """Where servers run."""

    def __init__(self, portal: BlockingPortal) -> None:
        """Run them in the loop behind ``portal``."""
        self._portal = portal

    def running(
        self, server: AbstractAsyncContextManager[_Value]
    ) -> contextlib.AbstractContextManager[_Value]:
        """A server of trio as a context manager for code that blocks."""
        return self._portal.wrap_async_context_manager(server)

    @contextlib.contextmanager
    def serving(
        self,
        registry: FakeRegistry,
        *,
        answer: Answer | None = None,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
    ) -> Iterator[RegistryServer]:
        """Serve a registry for the block; ``answer`` may stand between it and who asks."""
        server = RegistryServer(registry, self, answer or registry.answer, tls, address)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """A loop for servers, in a thread."""
    with start_blocking_portal("trio") as portal:
        yield Servers(portal)
