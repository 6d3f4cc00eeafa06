"""The connections that serve one host: a request goes out, the head of its answer comes back."""

import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TypeAlias

import httpx
import trio

from registry.deadlines import INFINITE, SLOWEST_BYTES_PER_S, Deadlines
from registry.errors import ConfigurationError, TransportError
from registry.hosts import HostConfig
from registry.httperrors import host_of
from registry.names import doubt_names
from registry.proxies import proxy_for
from registry.tls import elsewhere_context, host_context, no_context

CONNECTIONS = 64
IDLE_CONNECTIONS = 32
IDLE_S = 60.0
READ_BYTES = 1 << 20
WRITE_BYTES = 64 << 10
"""What is written at a time: each write may stall for so long."""
READING_METHODS = frozenset({"GET", "HEAD"})

# Reading 1 MiB at a time instead of 64 KiB makes large plain-HTTP bodies more than twice as fast.
# The attribute is private to httpcore: where it is gone, things only get slower.
with suppress(ImportError, AttributeError):
    from httpcore._async.http11 import AsyncHTTP11Connection

    AsyncHTTP11Connection.READ_NUM_BYTES = max(READ_BYTES, AsyncHTTP11Connection.READ_NUM_BYTES)

# They log whole URLs and headers: the query of a signed URL, cookies.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Content: TypeAlias = bytes | AsyncIterator[bytes] | None
Headers: TypeAlias = Sequence[tuple[str, str]]


class Connections:
    """Connections to one host, and to wherever it sends us."""

    def __init__(self, config: HostConfig, limits: Deadlines, user_agent: str) -> None:
        self._config = config
        self._limits = limits
        self._standard = (
            ("User-Agent", user_agent),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
        )
        self._stack = AsyncExitStack()
        self._transports: dict[tuple[str, bool, str | None], httpx.AsyncHTTPTransport] = {}

    async def aclose(self) -> None:
        """Close them all."""
        await self._stack.aclose()

    def is_own(self, url: httpx.URL) -> bool:
        """Whether a URL is of the host itself."""
        return host_of(url).lower() == self._config.host

    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        private: Headers,
        content: Content,
    ) -> httpx.Response:
        """Send a request; once more if the server has closed the connection that was kept.

        No cookies are kept, no redirects followed. The answer's body is unread; the caller closes
        the answer.

        Raises:
            httpx.HTTPError: as httpx has it.
            ConfigurationError: the proxy or a file of the configuration cannot be used.
            TransportError: the head of an answer does not come in time.
        """
        transport = self._transport(url)
        sent = self._headers(url, headers, private, content)
        may_repeat = method in READING_METHODS
        while True:
            note = _ConnectionNote()
            extensions = {"trace": note, "timeout": self._timeouts(method)}
            body = _Body(content)
            request = httpx.Request(method, url, headers=sent, stream=body, extensions=extensions)
            with trio.move_on_after(self._answer_limit_s(method, content)):
                try:
                    response = await transport.handle_async_request(request)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    doubt_names()
                    raise
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    if note.connected or not may_repeat:
                        raise
                    may_repeat = False
                    continue
                response.request = request
                return response
            raise TransportError(f"{host_of(url)}: no complete answer in time")

    def _headers(
        self, url: httpx.URL, headers: Mapping[str, str], private: Headers, content: Content
    ) -> Headers:
        pairs = [("Host", url.netloc.decode("ascii")), *headers.items()]
        taken = {name.lower() for name, _ in pairs}
        pairs += [pair for pair in private if pair[0].lower() not in taken]
        taken |= {name.lower() for name, _ in private}
        pairs += [pair for pair in self._standard if pair[0].lower() not in taken]
        if isinstance(content, bytes) and "content-length" not in taken:
            pairs.append(("Content-Length", str(len(content))))
        return pairs

    def _answer_wait_s(self, method: str) -> float:
        reading = method in READING_METHODS
        return self._limits.first_byte_s if reading else self._limits.upload_s

    def _timeouts(self, method: str) -> dict[str, float | None]:
        wait_s = self._answer_wait_s(method)
        return {
            "connect": self._limits.connect_s,
            "read": None if wait_s == INFINITE else wait_s,
            "write": self._limits.stall_s,
            "pool": self._limits.first_byte_s,
        }

    def _answer_limit_s(self, method: str, content: Content) -> float:
        """How long sending and waiting for the head may take, whatever drips in meanwhile."""
        if not (content is None or isinstance(content, bytes)):
            return INFINITE
        sending_s = len(content or b"") / SLOWEST_BYTES_PER_S
        # A connection may be waited for, then made: by TCP and by TLS.
        return 2 * self._limits.connect_s + self._answer_wait_s(method) + sending_s

    def _transport(self, url: httpx.URL) -> httpx.AsyncHTTPTransport:
        """The transport for a URL, made when it is first needed: reading CAs takes 20 ms."""
        own = self.is_own(url)
        proxy = proxy_for(url.scheme, url.host, url.port, os.environ)
        key = (url.scheme, own, proxy)
        if key not in self._transports:
            transport = _open_transport(self._tls(url.scheme, own), proxy)
            self._stack.push_async_callback(transport.aclose)
            self._transports[key] = transport
        return self._transports[key]

    def _tls(self, scheme: str, own: bool) -> ssl.SSLContext:
        if scheme != "https":
            return no_context()
        return host_context(self._config) if own else elsewhere_context(self._config)


def _open_transport(tls: ssl.SSLContext, proxy: str | None) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(
        max_connections=CONNECTIONS,
        max_keepalive_connections=IDLE_CONNECTIONS,
        keepalive_expiry=IDLE_S,
    )
    try:
        chosen = None if proxy is None else httpx.Proxy(proxy)
        return httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits, proxy=chosen)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # What is wrong with it is not told: it may hold a password.
        raise ConfigurationError(
            "the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names cannot be used"
        ) from error


class _ConnectionNote:
    """Notes whether a request needed a new connection (httpcore's ``trace`` extension)."""

    __slots__ = ("connected",)

    def __init__(self) -> None:
        self.connected = False

    async def __call__(self, name: str, info: object) -> None:
        if name == "connection.connect_tcp.started":
            self.connected = True


class _Body(httpx.AsyncByteStream):
    """What is sent. No async generator: one that is not read to its end would be left behind."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._content is None or isinstance(self._content, bytes):
            return _Slices(self._content or b"")
        return self._content


class _Slices:
    """Bytes in pieces that are written one after another."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __aiter__(self) -> "_Slices":
        return self

    async def __anext__(self) -> bytes:
        start = self._position
        if start >= len(self._data):
            raise StopAsyncIteration
        self._position += WRITE_BYTES
        return self._data[start : self._position]
