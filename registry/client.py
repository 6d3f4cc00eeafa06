"""Requests to one repository of a registry, with login and retries (OCI distribution-spec)."""

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
import trio

from registry.auth import Authorizer
from registry.errors import ContentError, ResponseError, TransportError
from registry.reference import Reference, is_loopback
from registry.replies import REPLY_LIMIT_BYTES, refusal
from registry.retry import RETRIED_STATUSES, RetryPolicy, parse_retry_after
from registry.wire import Content, Wire, host_of, origin

log = logging.getLogger(__name__)

NO_TIMEOUT_BUDGET_S = 300.0
"""How long to try again when the user set no time limit."""
_UNAUTHORIZED, _BAD_REQUEST = 401, 400

T = TypeVar("T")


class RegistryClient:
    """Requests to one repository."""

    def __init__(self, reference: Reference, wire: Wire) -> None:
        self.reference = reference
        self.wire = wire
        self.policy = RetryPolicy(wire.access.timeout_s or NO_TIMEOUT_BUDGET_S)
        self._authorizer = Authorizer(reference, wire)
        self._base: httpx.URL | None = None
        self._base_lock = trio.Lock()

    def __str__(self) -> str:
        return f"{self.reference.registry}/{self.reference.repository}"

    async def url(self, path: str) -> httpx.URL:
        """The URL of ``path`` below the repository, such as ``manifests/latest``."""
        return httpx.URL(f"{await self._find_base()}{path}")

    async def _find_base(self) -> httpx.URL:
        if self._base is None:
            async with self._base_lock:
                scheme = await self._find_scheme()
                where = f"{self.reference.endpoint}/v2/{self.reference.repository}/"
                self._base = httpx.URL(f"{scheme}://{where}")
        return self._base

    async def _find_scheme(self) -> str:
        """HTTPS, unless plain HTTP was asked for; on this machine, what the server speaks."""
        if self._base is not None:
            return self._base.scheme  # another task found it while this one waited for the lock
        if self.wire.access.plain_http:
            return "http"
        if not is_loopback(self.reference.endpoint):
            return "https"
        try:
            url = httpx.URL(f"http://{self.reference.endpoint}/v2/")
            async with self.wire.exchange("GET", url, {}) as response:
                # A TLS server answers plain HTTP with 400, or hangs up.
                return "https" if response.status_code == _BAD_REQUEST else "http"
        except TransportError as error:
            if isinstance(error.__cause__, httpx.RemoteProtocolError | httpx.ReadError):
                return "https"
            raise

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: httpx.URL,
        scopes: tuple[str, ...],
        headers: Mapping[str, str],
        content: Content = None,
    ) -> AsyncIterator[httpx.Response]:
        """One request, with a login if the registry asks for one; any status is an answer.

        Raises:
            RegistryError: no answer, or no login.
        """
        # An upload's Location may lie on another host: that one learns no credentials.
        ours = origin(url) == origin(await self._find_base())
        header = self._authorizer.header(scopes) if ours else None
        async with self.wire.exchange(
            method, url, headers, authorization=header, content=content
        ) as response:
            refused = ours and response.status_code == _UNAUTHORIZED
            if not refused or origin(response.url) != origin(url):
                yield response
                return
        header = await self._authorizer.answer(response, scopes, header)
        if not (content is None or isinstance(content, bytes)):
            raise TransportError(f"{self}: login expired during an upload")
        async with self.wire.exchange(
            method, url, headers, authorization=header, content=content
        ) as response:
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
        by = "" if where == self.reference.endpoint else f" (at {where})"
        after = parse_retry_after(response.headers.get("retry-after"), response.headers.get("date"))
        return refusal(response.status_code, body, f"{self}: {what}{by}", after)

    async def retry(
        self, operation: Callable[[], Awaitable[T]], policy: RetryPolicy | None = None
    ) -> T:
        """Run an operation that may be run again, until it works or the policy gives up.

        Raises:
            RegistryError: the last failure.
        """
        began = trio.current_time()
        tries = 0
        while True:
            try:
                return await operation()
            except (TransportError, ResponseError) as error:
                tries += 1
                await self.pause(error, tries, began, policy)

    async def pause(
        self,
        error: TransportError | ResponseError,
        tries: int,
        began: float,
        policy: RetryPolicy | None = None,
    ) -> None:
        """Wait before another try after ``error``.

        Raises:
            RegistryError: ``error``, when trying again is no use or takes too long.
        """
        wanted_s = None
        if isinstance(error, ResponseError):
            if error.status not in RETRIED_STATUSES:
                raise error
            wanted_s = error.retry_after_s
        elapsed_s = trio.current_time() - began
        jitter = random.random()  # noqa: S311 - spreads clients, keeps no secret
        delay_s = (policy or self.policy).delay_s(tries, elapsed_s, wanted_s, jitter)
        if delay_s is None:
            raise error
        log.debug("%s; trying again in %.1f s", error, delay_s)
        await trio.sleep(delay_s)

    async def fetch(
        self, path: str, headers: Mapping[str, str], limit_bytes: int
    ) -> tuple[httpx.Headers, bytes]:
        """A small thing below the repository, with retries.

        Raises:
            RegistryError: it cannot be had, or is longer than ``limit_bytes``.
        """

        async def once() -> tuple[httpx.Headers, bytes]:
            url = await self.url(path)
            async with self.request("GET", url, pull_scope(self.reference), headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise await self.refusal(response, path)
                return response.headers, await self.wire.read(response, limit_bytes)

        return await self.retry(once)


def pull_scope(reference: Reference) -> tuple[str, ...]:
    """What a token must allow for reading."""
    return (f"repository:{reference.repository}:pull",)
