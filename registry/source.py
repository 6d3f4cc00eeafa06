"""An image in a registry, for reading."""

import trio

from registry.blob import RemoteBlob
from registry.client import RegistryClient
from registry.digest import Digest, verify
from registry.errors import ContentError
from registry.files import check_limit
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

ACCEPT_MANIFESTS = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))


class RegistrySource:
    """One image of a repository (an ``ImageSource``)."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client
        self._resolved: tuple[Digest, bytes] | None = None

    @property
    def name(self) -> str:
        """As ``ImageSource.name``."""
        return str(self.client.reference)

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``.

        The body is kept for ``fetch_manifest``: the first manifest costs one round trip.
        """
        reference = self.client.reference
        headers, raw = await self._fetch(str(reference.digest or reference.tag))
        if reference.digest is not None:
            digest = reference.digest
        else:
            digest = Digest.of(raw)
            if promised := headers.get("docker-content-digest"):
                digest = Digest.parse(promised)
        verify(raw, digest, len(raw), self.name)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in MANIFESTS | INDEXES:
            media_type = media_type_of(raw) or media_type
        if media_type in (DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_SIGNED):
            raise ContentError(f"{self.name}: has an image in Docker's format of before 2016")
        self._resolved = (digest, raw)
        return Descriptor(media_type, digest, len(raw))

    async def _fetch(self, tag_or_digest: str) -> tuple[dict[str, str], bytes]:
        headers, raw = await self.client.fetch(
            f"manifests/{tag_or_digest}", {"Accept": ACCEPT_MANIFESTS}, MANIFEST_LIMIT_BYTES
        )
        return dict(headers), raw

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        check_limit(descriptor, MANIFEST_LIMIT_BYTES, str(self.client))
        if self._resolved and self._resolved[0] == descriptor.digest:
            raw = self._resolved[1]
        else:
            _, raw = await self._fetch(str(descriptor.digest))
        verify_content(raw, descriptor, str(self.client))
        return raw

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        check_limit(descriptor, limit_bytes, str(self.client))
        raw = await RemoteBlob(self.client, descriptor).fetch(0, descriptor.size_bytes)
        await trio.to_thread.run_sync(verify_content, raw, descriptor, str(self.client))
        return raw

    async def open_blob(self, descriptor: Descriptor) -> RemoteBlob:
        """As ``ImageSource.open_blob``; asks the registry for nothing yet."""
        return RemoteBlob(self.client, descriptor)
