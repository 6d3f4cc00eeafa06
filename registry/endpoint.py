"""One host that may serve a repository: its address, its login, its health."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

import httpx
import trio

from registry.auth import Authorizer, Scopes, with_authorization
from registry.connections import Content
from registry.errors import ContentError, ProtocolError, ResponseError, TransportError
from registry.health import HostHealth, HostStatus
from registry.hosts import HostConfig
from registry.httperrors import host_of
from registry.keychain import Keychain
from registry.reference import Reference, is_loopback
from registry.replies import REPLY_LIMIT_BYTES, refusal
from registry.retry import RetryBudget, parse_retry_after
from registry.wire import Wire, origin

log = logging.getLogger(__name__)

_OK, _UNAUTHORIZED, _BAD_REQUEST = 200, 401, 400


class Endpoint:
    """Requests for one repository to one host."""

    def __init__(self, reference: Reference, wire: Wire, config: HostConfig) -> None:
        """Speak through ``wire``, which was made for ``config``."""
        self.reference = reference
        self.wire = wire
        self.capabilities = config.capabilities
        self.health = HostHealth(worked=wire.access.worked_before)
        self.budget = RetryBudget(trio.current_time())
        self._config = config
        self.is_mirror = config.host not in (reference.endpoint, reference.registry)
        self.name = config.host
        """``host[:port]``, for messages."""
        keychain = Keychain(
            config.host if self.is_mirror else reference.registry,
            reference.repository,
            wire.access.timeout_s,
            # What the user gives is for the registry that the image's name means.
            None if self.is_mirror else wire.access.credentials,
        )
        self._authorizer = Authorizer(wire, keychain, config.headers)
        self._base: httpx.URL | None = None
        self._base_lock = trio.Lock()
        if config.skip_verify:
            log.warning("%s: its certificate is not checked (skip_verify)", self.name)

    def __str__(self) -> str:
        at = f" at {self.name}" if self.is_mirror else ""
        return f"{self.reference.registry}/{self.reference.repository}{at}"

    def status(self) -> HostStatus:
        """How it does; never waits."""
        role = "mirror" if self.is_mirror else "registry"
        return self.health.status(self.name, role, trio.current_time(), self.wire.received_bytes)

    async def url(self, path: str) -> httpx.URL:
        """The URL of ``path`` below the repository, such as ``manifests/latest``."""
        return self._url(await self._find_base(), path)

    def _url(self, base: httpx.URL, path: str) -> httpx.URL:
        url = f"{base}{path}"
        if self.is_mirror:
            # A mirror of several registries learns so whose repository is meant.
            mark = "&" if "?" in path else "?"
            url += f"{mark}ns={quote(self.reference.registry, safe=':')}"
        return httpx.URL(url)

    async def _find_base(self) -> httpx.URL:
        if self._base is None:
            async with self._base_lock:
                if self._base is None:  # another task may have found it meanwhile
                    self._base = self._base_by(self._told_scheme() or await self._find_scheme())
        return self._base

    def _base_by(self, scheme: str) -> httpx.URL:
        where = f"{self._config.host}{self._config.path}/{self.reference.repository}/"
        return httpx.URL(f"{scheme}://{where}")

    def _told_scheme(self) -> str:
        """HTTPS, unless plain HTTP was asked for; empty: on this machine, either."""
        if self._config.scheme:
            return self._config.scheme
        if self.wire.access.plain_http:
            return "http"
        if not is_loopback(self._config.host) or self._config.ca or self._config.client:
            return "https"
        return ""

    async def _find_scheme(self) -> str:
        """What a server on this machine speaks."""
        try:
            url = httpx.URL(f"http://{self._config.host}/v2/")
            async with self.wire.exchange("GET", url, {}) as response:
                # A TLS server answers plain HTTP with 400, or hangs up.
                return "https" if response.status_code == _BAD_REQUEST else "http"
        except TransportError as error:
            if isinstance(error.__cause__, httpx.RemoteProtocolError | httpx.ReadError):
                return "https"
            raise

    @asynccontextmanager
    async def get(
        self, path: str, scopes: Scopes, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """Ask for a ``path`` below the repository; any status is an answer.

        Where it is not known yet whether a server on this machine speaks TLS, this asks it in plain
        HTTP: if it gives what was asked for, nothing else needs to be asked.

        Raises:
            RegistryError: no answer, or no login.
        """
        async with AsyncExitStack() as stack:
            response = await self._ask_plainly(path, headers, stack)
            if response is None:
                asked = self.request("GET", await self.url(path), scopes, headers)
                response = await stack.enter_async_context(asked)
            yield response

    async def _ask_plainly(
        self, path: str, headers: Mapping[str, str], stack: AsyncExitStack
    ) -> httpx.Response | None:
        """What a server on this machine gives at once in plain HTTP; None: ask it as others."""
        if self._base is not None or self._told_scheme() or self._config.headers:
            return None
        base = self._base_by("http")
        began = trio.current_time()
        try:
            exchange = self.wire.exchange("GET", self._url(base, path), headers)
            response = await stack.enter_async_context(exchange)
        except TransportError:
            return None
        if response.status_code != _OK:
            await stack.aclose()
            return None
        self.health.first_byte(trio.current_time() - began)
        self._base = base
        return response

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: httpx.URL,
        scopes: Scopes,
        headers: Mapping[str, str],
        content: Content = None,
    ) -> AsyncIterator[httpx.Response]:
        """One request, with a login if the host asks for one; any status is an answer.

        Raises:
            RegistryError: no answer, or no login.
        """
        # An upload's Location may lie on another host: that one learns no credentials.
        ours = origin(url) == origin(await self._find_base())
        header = await self._authorizer.header(scopes) if ours else None
        private = with_authorization(self._config.headers, header) if ours else ()
        began = trio.current_time()
        async with self.wire.exchange(
            method, url, headers, private=private, content=content
        ) as response:
            refused = ours and response.status_code == _UNAUTHORIZED
            if not refused or origin(response.url) != origin(url):
                if method == "GET":
                    self.health.first_byte(trio.current_time() - began)
                yield response
                return
        header = await self._authorizer.answer(response, scopes, header)
        if not (content is None or isinstance(content, bytes)):
            raise TransportError(f"{self}: login expired during an upload")
        private = with_authorization(self._config.headers, header)
        async with self.wire.exchange(
            method, url, headers, private=private, content=content
        ) as response:
            if response.status_code == _UNAUTHORIZED and origin(response.url) == origin(url):
                self._authorizer.refused(scopes, header)
            yield response

    async def refusal(self, response: httpx.Response, what: str) -> ResponseError:
        """The error for an answer with an unwanted status; ``what`` was asked for."""
        body = b""
        if response.request.method != "HEAD":
            try:
                body = await self.wire.read(response, REPLY_LIMIT_BYTES)
            except (ContentError, TransportError):
                log.debug("%s: unreadable error body", self)
        where = host_of(response.url)
        by = "" if where == self.name else f" (at {where})"
        after = parse_retry_after(response.headers.get("retry-after"), response.headers.get("date"))
        return refusal(response.status_code, body, f"{self}: {what}{by}", after)


def refuse_page(response: httpx.Response, wanted: str) -> None:
    """Refuse a web page where an image's content of media type ``wanted`` should be.

    Raises:
        ProtocolError: it is one, as login pages of networks and proxies are.
    """
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in ("text/html", "application/xhtml+xml") and wanted != media_type:
        raise ProtocolError(f"{host_of(response.url)}: sent a web page (is there a login page?)")


def pull_scope(reference: Reference) -> Scopes:
    """What a token must allow for reading."""
    return (f"repository:{reference.repository}:pull",)
