"""HTTP exchanges on behalf of one host: who may be spoken to, what is told to whom, for how long.

Everything of this package that goes over the network goes through ``Wire.exchange``, so that these
hold everywhere:

- TLS, unless the host is this machine or plain HTTP was asked for; never from TLS back to plain.
- A redirect to another origin (scheme, host, port) goes without credentials, client certificate and
  configured headers, and with all checks of TLS; so does the rest.
- Every wait ends: connecting, headers, each stall, and a body that only trickles.
- ``httpx`` errors become ``TransportError`` that names the host, never the query of a URL.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Self, cast

import httpx
import trio

from registry.connections import READING_METHODS, Connections, Content, Headers
from registry.deadlines import SLOWEST_BYTES_PER_S, deadlines
from registry.errors import ContentError, ProtocolError, TransportError
from registry.hosts import HostConfig
from registry.httperrors import host_of, http_errors
from registry.interfaces import Access
from registry.reference import is_loopback

REDIRECTS_LIMIT = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
BUFFERED_PIECES = 8
"""More than the HTTP parser holds when a body is given up."""
DRAIN_BYTES = 64 << 10
_NO_CONTENT = 204


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port: what credentials are bound to."""
    return url.scheme, url.host, url.port


class Wire:
    """The HTTP connections that serve one host; use as an async context manager."""

    def __init__(self, access: Access, config: HostConfig | None = None) -> None:
        self.access = access
        self.deadlines = deadlines(access.timeout_s, config.dial_timeout_s if config else None)
        self.received_bytes = 0
        """Of the bodies of all answers."""
        self._config = config or HostConfig("")
        self._connections = Connections(self._config, self.deadlines, access.user_agent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._connections.aclose()

    def check_target(self, url: httpx.URL, previous: httpx.URL | None = None) -> None:
        """Refuse a URL that must not be asked.

        Raises:
            ProtocolError: not HTTP(S), plain where it must not be, or with a user name in it.
        """
        host = host_of(url)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            sender = host_of(previous) if previous is not None else host
            raise ProtocolError(f"{sender}: sent us to an address that is not plain HTTP(S)")
        if url.scheme == "https":
            return
        if previous is not None and previous.scheme == "https":
            raise ProtocolError(f"{host_of(previous)}: sent us from HTTPS to HTTP ({host})")
        sender = f"{host_of(previous)} sent us to it: " if previous is not None else ""
        configured = self._config.scheme == "http" and self._connections.is_own(url)
        if not (self.access.plain_http or configured or is_loopback(host)):
            raise ProtocolError(f"{sender}{host}: plain HTTP to another machine must be asked for")

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        *,
        private: Headers = (),
        content: Content = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, follow redirects, and give the last answer with its body unread.

        ``private`` are headers for the origin of ``url`` only, such as ``Authorization``.

        Raises:
            TransportError: no answer, or one that leads where we must not go.
        """
        self.check_target(url)
        for _ in range(REDIRECTS_LIMIT + 1):
            async with self._send(method, url, headers, private, content) as response:
                follow = response.status_code in REDIRECT_STATUSES and method in READING_METHODS
                if not follow:
                    yield response
                    return
                target = self.resolve_location(response)
            if origin(target) != origin(url):
                private = ()
            url = target
        raise ProtocolError(f"{host_of(url)}: more than {REDIRECTS_LIMIT} redirects")

    def resolve_location(self, response: httpx.Response) -> httpx.URL:
        """Where the ``Location`` of an answer leads, absolute.

        Raises:
            ProtocolError: it is missing or broken, or we must not go there.
        """
        host = host_of(response.url)
        try:
            target = response.url.join(response.headers["location"])
            self.check_target(target, response.url)  # a host may turn out to be no name at all
        except (KeyError, httpx.InvalidURL, ValueError) as error:
            raise ProtocolError(f"{host}: answer without a usable Location") from error
        return target

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        private: Headers,
        content: Content,
    ) -> AsyncIterator[httpx.Response]:
        with http_errors(url, self.deadlines):
            response = await self._connections.send(method, url, headers, private, content)
        try:
            yield response
            await self._drain(response)
        finally:
            await response.aclose()

    async def _drain(self, response: httpx.Response) -> None:
        """Read a short body that nobody wanted: only then can the connection be used again."""
        length = response.headers.get("content-length", "")
        short = length.isdigit() and len(length) < 9 and int(length) <= DRAIN_BYTES
        bodiless = response.request.method == "HEAD" or response.status_code == _NO_CONTENT
        if (short or bodiless) and not response.is_stream_consumed:
            with suppress(TransportError, ContentError):
                async with aclosing(self.pieces(response)) as pieces:
                    async for _ in pieces:
                        pass

    async def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The body as it comes, with a limit on the time spent waiting for it.

        Raises:
            TransportError: it was cut, or it stalled or trickled.
            ContentError: it is encoded although we asked for it as it is.
        """
        host = host_of(response.url)
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in ("", "identity"):
            raise ContentError(f"{host}: answer with content encoding {encoding!r:.40}")
        stall_s = self.deadlines.stall_s
        allowed_s = stall_s
        waited_s = 0.0
        body = cast("AsyncGenerator[bytes, None]", response.aiter_raw())
        try:
            while True:
                before = trio.current_time()
                with (
                    http_errors(response.url, self.deadlines),
                    trio.move_on_after(stall_s) as stall,
                ):
                    try:
                        piece = await anext(body)
                    except StopAsyncIteration:
                        return
                if stall.cancelled_caught:
                    raise TransportError(f"{host}: answer stalled for {stall_s:g} s")
                waited_s += trio.current_time() - before
                self.received_bytes += len(piece)
                allowed_s += len(piece) / SLOWEST_BYTES_PER_S
                if waited_s > allowed_s:
                    raise TransportError(f"{host}: answers too slowly")
                yield piece
        finally:
            await _end(response, body)

    async def read(self, response: httpx.Response, limit_bytes: int) -> bytes:
        """The whole body.

        Raises:
            ContentError: longer than ``limit_bytes``.
            TransportError: as ``pieces``.
        """
        parts: list[bytes] = []
        length = 0
        async with aclosing(self.pieces(response)) as pieces:
            async for piece in pieces:
                length += len(piece)
                if length > limit_bytes:
                    raise ContentError(
                        f"{host_of(response.url)}: answer passes the limit of {limit_bytes} bytes"
                    )
                parts.append(piece)
        return b"".join(parts)


async def _end(response: httpx.Response, body: AsyncGenerator[bytes, None]) -> None:
    """Close a response whose body may not have been read to its end.

    httpx hands a body through several generators; closing the outermost one leaves the others to
    the garbage collector, of which trio complains. Once the connection is closed, asking for more
    ends them all with an error.
    """
    with trio.CancelScope(shield=True):
        await response.aclose()
        with suppress(httpx.HTTPError, httpx.StreamError, StopAsyncIteration):
            for _ in range(BUFFERED_PIECES):
                await anext(body)
        await body.aclose()
