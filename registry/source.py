"""An image in a registry, for reading."""

from collections.abc import Callable
from typing import TypeVar

import httpx
import trio

from registry.blob import RemoteBlob
from registry.client import RegistryClient
from registry.digest import Digest, verify
from registry.endpoint import refuse_page
from registry.errors import ContentError, RegistryError
from registry.files import check_limit
from registry.health import HostStatus
from registry.hosts import Capability
from registry.httperrors import host_of
from registry.manifest import MANIFEST_LIMIT_BYTES, Descriptor, media_type_of, verify_content
from registry.mediatype import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA_1,
    DOCKER_SCHEMA_1_SIGNED,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
)
from registry.referrers import list_referrers
from registry.retry import ask_again

ACCEPT_MANIFESTS = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))

T = TypeVar("T")


class _Ahead:
    """A question that was asked before anybody wants to know."""

    __slots__ = ("answered", "outcome")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.outcome: Descriptor | RegistryError | None = None


class RegistrySource:
    """One image of a repository (an ``ImageSource``)."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client
        self._resolved: tuple[Digest, bytes] | None = None
        self._ahead: _Ahead | None = None

    @property
    def name(self) -> str:
        """As ``ImageSource.name``."""
        return str(self.client.reference)

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``.

        The body is kept for ``fetch_manifest``: the first manifest costs one round trip.
        """
        if self._ahead is None:
            return await self._resolve()
        ahead, self._ahead = self._ahead, None
        await ahead.answered.wait()
        if isinstance(ahead.outcome, Descriptor):
            return ahead.outcome
        raise ahead.outcome or AssertionError("an answer without an outcome")

    def resolve_ahead(self, nursery: trio.Nursery) -> None:
        """Begin to resolve: the next ``resolve`` gives the answer to this question."""
        self._ahead = _Ahead()
        nursery.start_soon(self._resolve_for, self._ahead)

    async def _resolve_for(self, ahead: _Ahead) -> None:
        try:
            ahead.outcome = await self._resolve()
        except RegistryError as error:
            ahead.outcome = error
        ahead.answered.set()

    async def _resolve(self) -> Descriptor:
        reference = self.client.reference
        by_digest = reference.digest is not None
        capability = Capability.PULL if by_digest else Capability.RESOLVE
        name = str(reference.digest or reference.tag)
        descriptor, raw = await self._fetch(name, capability, self._describe)
        if descriptor.media_type in (DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_SIGNED):
            raise ContentError(f"{self.name}: has an image in Docker's format of before 2016")
        self._resolved = (descriptor.digest, raw)
        return descriptor

    def _describe(self, response: httpx.Response, raw: bytes) -> tuple[Descriptor, bytes]:
        """What an answer to the image's own name is."""
        refuse_page(response, "")
        digest = self.client.reference.digest
        if digest is None:
            digest = Digest.of(raw)
            if promised := response.headers.get("docker-content-digest"):
                digest = Digest.parse(promised)
        verify(raw, digest, len(raw), f"{self.name} from {host_of(response.url)}")
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in MANIFESTS | INDEXES:
            media_type = media_type_of(raw) or media_type
        return Descriptor(media_type, digest, len(raw)), raw

    async def _fetch(
        self,
        tag_or_digest: str,
        capability: Capability,
        check: Callable[[httpx.Response, bytes], T],
    ) -> T:
        headers = {"Accept": ACCEPT_MANIFESTS}
        path = f"manifests/{tag_or_digest}"
        return await self.client.fetch(path, headers, MANIFEST_LIMIT_BYTES, capability, check)

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        check_limit(descriptor, MANIFEST_LIMIT_BYTES, str(self.client))
        if self._resolved and self._resolved[0] == descriptor.digest:
            verify_content(self._resolved[1], descriptor, str(self.client))
            return self._resolved[1]

        def check(response: httpx.Response, raw: bytes) -> bytes:
            refuse_page(response, descriptor.media_type)
            verify_content(raw, descriptor, f"{self.client} from {host_of(response.url)}")
            return raw

        return await self._fetch(str(descriptor.digest), Capability.PULL, check)

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        check_limit(descriptor, limit_bytes, str(self.client))
        blob = RemoteBlob(self.client, descriptor)
        names: list[str] = []
        while True:
            raw = await blob.fetch(0, descriptor.size_bytes)
            try:
                await trio.to_thread.run_sync(verify_content, raw, descriptor, str(self.client))
            except ContentError:
                names.append(blob.distrust(0, descriptor.size_bytes))
                if not ask_again(names):
                    raise
            else:
                return raw

    async def open_blob(self, descriptor: Descriptor) -> RemoteBlob:
        """As ``ImageSource.open_blob``; asks the registry for nothing yet."""
        return RemoteBlob(self.client, descriptor)

    async def list_referrers(
        self, subject: Digest, artifact_type: str = ""
    ) -> tuple[Descriptor, ...]:
        """As ``registry.referrers.list_referrers``."""
        return await list_referrers(self.client, subject, artifact_type)

    def hosts(self) -> tuple[HostStatus, ...]:
        """As ``ImageSource.hosts``."""
        return self.client.hosts()
