"""One HTTP exchange: who may be spoken to, what may be told to whom, and for how long.

Everything of this package that goes over the network goes through ``Wire.exchange``, so that these
hold everywhere:

- TLS, unless the host is this machine or plain HTTP was asked for; never from TLS back to plain.
- A redirect to another origin (scheme, host, port) goes without credentials, and so does the rest.
- Every wait ends: connecting, headers, each stall, and a body that only trickles.
- ``httpx`` errors become ``TransportError`` that names the host, never the query of a URL.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Self, TypeAlias, cast

import httpx
import trio

from registry.errors import ContentError, TransportError
from registry.interfaces import Access
from registry.reference import is_loopback

REDIRECTS_LIMIT = 5
REDIRECTED_METHODS = frozenset({"GET", "HEAD"})
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
CONNECTIONS = 64
IDLE_CONNECTIONS = 32
IDLE_S = 60.0
SLOWEST_BYTES_PER_S = 8 << 10
"""A peer that is slower than this on the whole is treated as one that does not answer."""
READ_BYTES = 1 << 20
CAUSES_LIMIT = 16
BUFFERED_PIECES = 8
"""More than the HTTP parser holds when a body is given up."""
DRAIN_BYTES = 64 << 10
_NO_CONTENT = 204

# Reading 1 MiB at a time instead of 64 KiB makes large plain-HTTP bodies more than twice as fast.
# The attribute is private to httpcore: where it is gone, things only get slower.
with suppress(ImportError, AttributeError):
    from httpcore._async.http11 import AsyncHTTP11Connection

    AsyncHTTP11Connection.READ_NUM_BYTES = max(READ_BYTES, AsyncHTTP11Connection.READ_NUM_BYTES)

Content: TypeAlias = bytes | AsyncIterator[bytes] | None


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port: what credentials are bound to."""
    return url.scheme, url.host, url.port


def host_of(url: httpx.URL) -> str:
    """``host[:port]`` for messages."""
    return url.netloc.decode("ascii", "replace").rpartition("@")[2]


class Wire:
    """The HTTP connections of one source or destination; use as an async context manager."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._stack = AsyncExitStack()
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    def check_target(self, url: httpx.URL, previous: httpx.URL | None = None) -> None:
        """Refuse a URL that must not be asked.

        Raises:
            TransportError: not HTTP(S), plain where it must not be, or with a user name in it.
        """
        host = host_of(url)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            sender = host_of(previous) if previous is not None else host
            raise TransportError(f"{sender}: sent us to an address that is not plain HTTP(S)")
        if url.scheme == "https":
            return
        if previous is not None and previous.scheme == "https":
            raise TransportError(f"{host_of(previous)}: sent us from HTTPS to HTTP ({host})")
        if not self.access.plain_http and not is_loopback(host):
            raise TransportError(f"{host}: plain HTTP to another machine must be asked for")

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        *,
        authorization: str | None = None,
        content: Content = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, follow redirects, and give the last answer with its body unread.

        Raises:
            TransportError: no answer, or one that leads where we must not go.
        """
        self.check_target(url)
        for _ in range(REDIRECTS_LIMIT + 1):
            async with self._send(method, url, headers, authorization, content) as response:
                follow = response.status_code in REDIRECT_STATUSES and method in REDIRECTED_METHODS
                if not follow:
                    yield response
                    return
                target = self.resolve_location(response)
            if origin(target) != origin(url):
                authorization = None
            url = target
        raise TransportError(f"{host_of(url)}: more than {REDIRECTS_LIMIT} redirects")

    def resolve_location(self, response: httpx.Response) -> httpx.URL:
        """Where the ``Location`` of an answer leads, absolute.

        Raises:
            TransportError: it is missing or broken, or we must not go there.
        """
        host = host_of(response.url)
        try:
            target = response.url.join(response.headers["location"])
        except (KeyError, httpx.InvalidURL, ValueError) as error:
            raise TransportError(f"{host}: answer without a usable Location") from error
        self.check_target(target, response.url)
        return target

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        authorization: str | None,
        content: Content,
    ) -> AsyncIterator[httpx.Response]:
        client = self._client(url.scheme)
        sent = dict(headers)
        if authorization is not None:
            sent["Authorization"] = authorization
        with self.http_errors(url):
            request = client.build_request(method, url, headers=sent, content=content)
            with trio.move_on_after(self._answer_limit_s(content)) as deadline:
                response = await client.send(
                    request, stream=True, auth=None, follow_redirects=False
                )
        if deadline.cancelled_caught:
            raise TransportError(f"{host_of(url)}: no complete answer in time")
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

    def _answer_limit_s(self, content: Content) -> float:
        """How long sending and waiting for the headers may take, whatever drips in meanwhile."""
        if not self.access.timeout_s or not (content is None or isinstance(content, bytes)):
            return float("inf")
        return 2 * self.access.timeout_s + len(content or b"") / SLOWEST_BYTES_PER_S

    def _client(self, scheme: str) -> httpx.AsyncClient:
        """The client for a scheme, made when it is first needed: reading CAs takes 20 ms."""
        if scheme not in self._clients:
            timeout = httpx.Timeout(self.access.timeout_s or None)
            client = httpx.AsyncClient(
                # Without CAs, a slip that sent HTTPS through the plain client would fail.
                verify=_tls() if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                timeout=timeout,
                limits=httpx.Limits(
                    max_connections=CONNECTIONS,
                    max_keepalive_connections=IDLE_CONNECTIONS,
                    keepalive_expiry=IDLE_S,
                ),
                headers={"User-Agent": self.access.user_agent, "Accept-Encoding": "identity"},
                # Cookies know no ports: what one server sets, another on this machine would get.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                # A proxy cannot reach this machine's loopback.
                mounts={f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
            )
            self._stack.push_async_callback(client.aclose)
            self._clients[scheme] = client
        return self._clients[scheme]

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
        allowed_s = self.access.timeout_s or float("inf")
        waited_s = 0.0
        body = cast("AsyncGenerator[bytes, None]", response.aiter_raw())
        try:
            while True:
                before = trio.current_time()
                with self.http_errors(response.url):
                    try:
                        piece = await anext(body)
                    except StopAsyncIteration:
                        return
                waited_s += trio.current_time() - before
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

    @contextmanager
    def http_errors(self, url: httpx.URL) -> Iterator[None]:
        """Turn what httpx raises into errors of this package."""
        host = host_of(url)
        try:
            yield
        except httpx.ConnectTimeout as error:
            raise TransportError(
                f"{host}: no connection within {self.access.timeout_s:g} s"
            ) from error
        except httpx.TimeoutException as error:
            raise TransportError(f"{host}: no answer within {self.access.timeout_s:g} s") from error
        except httpx.ConnectError as error:
            raise TransportError(f"{host}: cannot connect: {_reason(error)}") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            # UnicodeError: a host in a redirect that no name can be looked up for.
            raise TransportError(f"{host}: connection failed: {_reason(error)}") from error


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


def _reason(error: BaseException) -> str:
    """What the operating system or OpenSSL says, else httpx: wrappers between them say nothing."""
    text = ""
    for _ in range(CAUSES_LIMIT):
        if isinstance(error, OSError):
            text = error.strerror or str(error)
        elif isinstance(error, httpx.HTTPError | httpx.InvalidURL | UnicodeError):
            text = text or str(error)
        cause = error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        return "it does not speak TLS (plain HTTP must be asked for)"
    return text.splitlines()[0][:200] if text else type(error).__name__


def _tls() -> ssl.SSLContext:
    """The machine's own certificate authorities, else those that come with httpx."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return ssl.create_default_context()
    return httpx.create_ssl_context()
