"""An image in a registry, for writing (distribution-spec, "Push").

It goes to the first host that may be pushed to; what is pushed must not be spread over several.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote

from registry.attempts import Attempts
from registry.client import RegistryClient
from registry.digest import Digest
from registry.endpoint import Endpoint, pull_scope
from registry.errors import ContentError, ResponseError
from registry.hosts import Capability
from registry.interfaces import ImageSource
from registry.manifest import Descriptor
from registry.referrers import push_referrer
from registry.source import RegistrySource
from registry.upload import CHUNK_BYTES, NO_BODY, Data, Upload, abandon

log = logging.getLogger(__name__)

PUSH_TRIES = 3
"""An upload may take long, so its tries are counted, not their time."""
_OK, _CREATED, _ACCEPTED, _NOT_FOUND = 200, 201, 202, 404

T = TypeVar("T")


class RegistryDestination:
    """One image of a repository (an ``ImageDestination``)."""

    def __init__(self, client: RegistryClient, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._client = client
        self._chunk_bytes = chunk_bytes
        self._scopes = (f"repository:{client.reference.repository}:pull,push",)

    @property
    def name(self) -> str:
        """As ``ImageDestination.name``."""
        return str(self._client.reference)

    def _endpoint(self) -> Endpoint:
        return self._client.able(Capability.PUSH)[0]

    async def _run(self, operation: Callable[[Endpoint], Awaitable[T]]) -> T:
        """A short operation that may be run again."""
        total_s = self._client.deadlines.total_s
        return await self._client.run(
            operation, Attempts([self._endpoint()], total_s, writing=True)
        )

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """As ``ImageDestination.has_blob``."""

        async def once(endpoint: Endpoint) -> bool:
            url = await endpoint.url(f"blobs/{descriptor.digest}")
            async with endpoint.request("HEAD", url, self._scopes, {}) as response:
                if response.status_code == _NOT_FOUND:
                    return False
                if response.status_code != _OK:
                    raise await endpoint.refusal(response, f"blob {descriptor.digest}")
                length = response.headers.get("content-length", str(descriptor.size_bytes))
                if length != str(descriptor.size_bytes):
                    raise ContentError(
                        f"{endpoint}: {descriptor.digest} is {length[:20]} bytes there, wanted "
                        f"{descriptor.size_bytes}"
                    )
                return True

        return await self._run(once)

    async def mount_blob(self, descriptor: Descriptor, source: ImageSource) -> bool:
        """As ``ImageDestination.mount_blob``: from another repository of the same registry."""
        ours = self._client.reference
        if not isinstance(source, RegistrySource):
            return False
        theirs = source.client.reference
        if theirs.registry != ours.registry:
            return False
        if theirs.repository == ours.repository:
            return await self.has_blob(descriptor)
        endpoint = self._endpoint()
        url = await endpoint.url(
            f"blobs/uploads/?mount={quote(str(descriptor.digest))}&from={quote(theirs.repository)}"
        )
        scopes = (*self._scopes, *pull_scope(theirs))
        try:
            async with endpoint.request("POST", url, scopes, NO_BODY) as response:
                if response.status_code == _CREATED:
                    return True
                if response.status_code != _ACCEPTED:
                    raise await endpoint.refusal(response, f"mount from {theirs.repository}")
                session = endpoint.wire.resolve_location(response)
        except ResponseError as error:
            log.debug("%s", error)  # the bytes can still be sent
            return False
        await abandon(endpoint, session, self._scopes)
        return False

    async def push_blob(self, descriptor: Descriptor, data: Data) -> None:
        """As ``ImageDestination.push_blob``.

        Cancelled: an upload that was begun is left to the registry, which drops it in time.
        """
        if await self.has_blob(descriptor):
            return

        async def once(endpoint: Endpoint) -> None:
            await Upload(endpoint, self._scopes, descriptor, self._chunk_bytes).send(data)

        attempts = Attempts([self._endpoint()], float("inf"), PUSH_TRIES, writing=True)
        await self._client.run(once, attempts)

    async def push_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """As ``ImageDestination.push_manifest``."""
        await self._put_manifest(str(descriptor.digest), raw, descriptor)

    async def tag(self, descriptor: Descriptor, raw: bytes) -> None:
        """As ``ImageDestination.tag``; a destination without a tag only has the digest."""
        reference = self._client.reference
        if reference.digest not in (None, descriptor.digest):
            raise ContentError(f"{self.name}: the image has digest {descriptor.digest}")
        await self._put_manifest(reference.tag or str(descriptor.digest), raw, descriptor)

    async def push_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        """As ``registry.referrers.push_referrer``."""
        await push_referrer(self._client, raw, descriptor, subject)

    async def _put_manifest(self, tag_or_digest: str, raw: bytes, descriptor: Descriptor) -> None:
        headers = {"Content-Type": descriptor.media_type}

        async def once(endpoint: Endpoint) -> None:
            url = await endpoint.url(f"manifests/{tag_or_digest}")
            async with endpoint.request("PUT", url, self._scopes, headers, raw) as response:
                if response.status_code not in (_OK, _CREATED):
                    raise await endpoint.refusal(response, f"manifest {tag_or_digest}")
                stored = response.headers.get("docker-content-digest", str(descriptor.digest))
                if stored != str(descriptor.digest):
                    raise ContentError(
                        f"{endpoint}: stored {stored[:140]}, wanted {descriptor.digest}"
                    )

        await self._run(once)
