"""One repository of a registry, wherever it is served: operations with failover and retries."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import httpx
import trio

from registry.attempts import Attempts
from registry.deadlines import Deadlines, deadlines
from registry.digest import Digest
from registry.endpoint import Endpoint, pull_scope
from registry.errors import ConfigurationError, RegistryError
from registry.health import HostStatus
from registry.hosts import Capability
from registry.interfaces import Access
from registry.reference import Reference
from registry.severalranges import SeveralRanges

REMEMBERED_RANGES = 4096
"""Ranges of which it is known who gave them, so that who gave wrong bytes can be named."""

T = TypeVar("T")


class Served(NamedTuple):
    """A range of a blob that was answered."""

    blob: Digest
    start: int
    end: int
    endpoint: Endpoint
    host: str


class RegistryClient:
    """Requests to one repository, of the registry itself or of mirrors before it."""

    def __init__(self, reference: Reference, access: Access, endpoints: Sequence[Endpoint]) -> None:
        """Ask ``endpoints`` in their order, as far as they do well."""
        self.reference = reference
        self.access = access
        self.endpoints = tuple(endpoints)
        self.deadlines: Deadlines = deadlines(access.timeout_s)
        self.prefixes: dict[Digest, bytes] = {}
        """Beginnings of blobs that come as a whole only; for ``registry.blob``."""
        self.served: deque[Served] = deque(maxlen=REMEMBERED_RANGES)
        """The last answers, of all blobs; likewise."""
        self.several = SeveralRanges()
        """Likewise."""

    def __str__(self) -> str:
        return f"{self.reference.registry}/{self.reference.repository}"

    def hosts(self) -> tuple[HostStatus, ...]:
        """How the hosts do; never waits."""
        return tuple(endpoint.status() for endpoint in self.endpoints)

    def able(self, capability: Capability) -> tuple[Endpoint, ...]:
        """The hosts that may be asked for something.

        Raises:
            ConfigurationError: none may.
        """
        able = tuple(e for e in self.endpoints if capability in e.capabilities)
        if not able:
            raise ConfigurationError(
                f"{self.reference.registry}: hosts.toml names no host with the capability "
                f"{capability.value!r}"
            )
        return able

    def attempts(self, capability: Capability) -> Attempts:
        """Tries of an operation."""
        return Attempts(self.able(capability), self.deadlines.total_s)

    async def run(
        self,
        operation: Callable[[Endpoint], Awaitable[T]],
        attempts: Attempts,
    ) -> T:
        """Run an operation that may be run again, until it works or ``attempts`` gives up.

        Raises:
            RegistryError: the failure that tells most.
        """
        while True:
            endpoint = attempts.choose()
            try:
                with trio.move_on_at(attempts.ends_at):
                    result = await operation(endpoint)
                    attempts.succeeded(endpoint)
                    return result
                error = attempts.expired(endpoint)
            except RegistryError as failure:
                error = failure
            await attempts.failed(endpoint, error)

    async def fetch(
        self,
        path: str,
        headers: Mapping[str, str],
        limit_bytes: int,
        capability: Capability,
        check: Callable[[httpx.Response, bytes], T],
    ) -> T:
        """A small thing below the repository, as ``check`` makes it of an answer.

        What ``check`` raises as a ``RegistryError`` is that host's failure.

        Raises:
            RegistryError: it cannot be had, or is longer than ``limit_bytes``.
        """

        async def once(endpoint: Endpoint) -> T:
            async with endpoint.get(path, pull_scope(self.reference), headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise await endpoint.refusal(response, path)
                return check(response, await endpoint.wire.read(response, limit_bytes))

        return await self.run(once, self.attempts(capability))
