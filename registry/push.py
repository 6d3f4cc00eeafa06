"""An image in a registry, for writing (distribution-spec, "Push").

Small blobs go in one piece. Larger ones go in chunks, so that no proxy's limit on the size of a
request is met; a registry that takes no chunks gets the blob as one stream. The registry checks the
digest of what arrives (the specification demands it), so it is not computed here once more.
"""

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from urllib.parse import quote

import httpx

from registry.client import RegistryClient, pull_scope
from registry.errors import ContentError, RegistryError, ResponseError, TransportError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.pieces import regroup
from registry.retry import RetryPolicy
from registry.source import RegistrySource
from registry.wire import Content, host_of

log = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20
CHUNK_LIMIT_BYTES = 128 << 20
"""Largest chunk that a registry may demand; one is held in memory."""
STREAM_PIECE_BYTES = 1 << 20
PUSH_POLICY = RetryPolicy(budget_s=float("inf"), attempts=3)
"""An upload may take long, so its tries are counted, not their time."""
NO_CHUNKS_STATUSES = frozenset({400, 404, 405, 411, 413, 416, 501})
"""What registries that take no chunks have been seen to answer to one."""
_OK, _CREATED, _ACCEPTED, _NOT_FOUND = 200, 201, 202, 404
NO_BODY = {"Content-Length": "0"}
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})", re.ASCII)

Data = Callable[[], AsyncIterable[bytes]]


class _NoChunksError(RegistryError):
    """The registry refused a chunk; the whole may still be welcome."""


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

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """As ``ImageDestination.has_blob``."""

        async def once() -> bool:
            url = await self._client.url(f"blobs/{descriptor.digest}")
            async with self._client.request("HEAD", url, self._scopes, {}) as response:
                if response.status_code == _NOT_FOUND:
                    return False
                if response.status_code != _OK:
                    raise await self._client.refusal(response, f"blob {descriptor.digest}")
                length = response.headers.get("content-length", str(descriptor.size_bytes))
                if length != str(descriptor.size_bytes):
                    raise ContentError(
                        f"{self._client}: {descriptor.digest} is {length[:20]} bytes there, wanted "
                        f"{descriptor.size_bytes}"
                    )
                return True

        return await self._client.retry(once)

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
        url = await self._client.url(
            f"blobs/uploads/?mount={quote(str(descriptor.digest))}&from={quote(theirs.repository)}"
        )
        scopes = (*self._scopes, *pull_scope(theirs))
        try:
            async with self._client.request("POST", url, scopes, NO_BODY) as response:
                if response.status_code == _CREATED:
                    return True
                if response.status_code != _ACCEPTED:
                    raise await self._client.refusal(response, f"mount from {theirs.repository}")
                session = self._client.wire.resolve_location(response)
        except ResponseError as error:
            log.debug("%s", error)  # the bytes can still be sent
            return False
        await self._abandon(session)
        return False

    async def push_blob(self, descriptor: Descriptor, data: Data) -> None:
        """As ``ImageDestination.push_blob``.

        Cancelled: an upload that was begun is left to the registry, which drops it in time.
        """
        if await self.has_blob(descriptor):
            return

        async def once() -> None:
            if descriptor.size_bytes <= self._chunk_bytes:
                await self._push_whole(descriptor, await _collect(descriptor, data))
                return
            try:
                await self._push_chunks(descriptor, data)
            except _NoChunksError as error:
                log.debug("%s; sending the blob as one stream", error)
                async with aclosing(_bounded(descriptor, data)) as stream:
                    await self._push_whole(descriptor, stream)

        await self._client.retry(once, PUSH_POLICY)

    async def _push_whole(self, descriptor: Descriptor, content: Content) -> None:
        session, _ = await self._begin()
        try:
            await self._finish(session, descriptor, content)
        except RegistryError:
            await self._abandon(session)
            raise

    async def _push_chunks(self, descriptor: Descriptor, data: Data) -> None:
        session, smallest = await self._begin()
        size_bytes = max(self._chunk_bytes, smallest)
        sent = 0
        try:
            async with aclosing(regroup(_bounded(descriptor, data), size_bytes)) as chunks:
                async for chunk in chunks:
                    session = await self._send_chunk(session, chunk, sent)
                    sent += len(chunk)
            await self._finish(session, descriptor, b"")
        except RegistryError:
            await self._abandon(session)
            raise

    async def _begin(self) -> tuple[httpx.URL, int]:
        """Open an upload; return its address and the least size of a chunk in bytes."""
        url = await self._client.url("blobs/uploads/")
        async with self._client.request("POST", url, self._scopes, NO_BODY) as response:
            if response.status_code != _ACCEPTED:
                raise await self._client.refusal(response, "upload")
            smallest = response.headers.get("oci-chunk-min-length", "0")
            if not (smallest.isascii() and smallest.isdigit() and len(smallest) < 19):
                smallest = "0"
            if int(smallest) > CHUNK_LIMIT_BYTES:
                raise ContentError(
                    f"{self._client}: wants chunks of {smallest} bytes, at most "
                    f"{CHUNK_LIMIT_BYTES} are held"
                )
            return self._client.wire.resolve_location(response), int(smallest)

    async def _send_chunk(self, session: httpx.URL, chunk: bytes, position: int) -> httpx.URL:
        headers = {
            "Content-Type": OCTET_STREAM,
            "Content-Range": f"{position}-{position + len(chunk) - 1}",
        }
        async with self._client.request("PATCH", session, self._scopes, headers, chunk) as response:
            if response.status_code in NO_CHUNKS_STATUSES:
                refusal = await self._client.refusal(response, "chunk of an upload")
                raise _NoChunksError(str(refusal)) from refusal
            if response.status_code != _ACCEPTED:
                raise await self._client.refusal(response, "chunk of an upload")
            arrived = _RANGE.fullmatch(response.headers.get("range", ""))
            if arrived and int(arrived[1]) != position + len(chunk) - 1:
                raise TransportError(
                    f"{self._client}: upload has {int(arrived[1]) + 1} bytes, "
                    f"{position + len(chunk)} were sent"
                )
            return self._client.wire.resolve_location(response)

    async def _finish(self, session: httpx.URL, descriptor: Descriptor, content: Content) -> None:
        """End an upload with its last (or all) bytes and the digest of the whole."""
        # The query of the address is the registry's own and must come back unchanged.
        mark = "&" if session.query else "?"
        url = httpx.URL(f"{session}{mark}digest={quote(str(descriptor.digest), safe='')}")
        length = len(content) if isinstance(content, bytes) else descriptor.size_bytes
        headers = {"Content-Type": OCTET_STREAM, "Content-Length": str(length)}
        async with self._client.request("PUT", url, self._scopes, headers, content) as response:
            if response.status_code == _CREATED:
                return
            refusal = await self._client.refusal(response, f"blob {descriptor.digest}")
        if refusal.code in ("DIGEST_INVALID", "SIZE_INVALID"):
            raise ContentError(f"{refusal}; the source gave other bytes than it promised")
        raise refusal

    async def _abandon(self, session: httpx.URL) -> None:
        """Tell the registry that an upload will not be finished; it may not care."""
        try:
            async with self._client.request("DELETE", session, self._scopes, {}) as response:
                log.debug("%s: upload given up: %d", host_of(session), response.status_code)
        except RegistryError as error:
            log.debug("%s: upload not given up: %s", host_of(session), error)

    async def push_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """As ``ImageDestination.push_manifest``."""
        await self._put_manifest(str(descriptor.digest), raw, descriptor)

    async def tag(self, descriptor: Descriptor, raw: bytes) -> None:
        """As ``ImageDestination.tag``; a destination without a tag only has the digest."""
        reference = self._client.reference
        if reference.digest not in (None, descriptor.digest):
            raise ContentError(f"{self.name}: the image has digest {descriptor.digest}")
        await self._put_manifest(reference.tag or str(descriptor.digest), raw, descriptor)

    async def _put_manifest(self, tag_or_digest: str, raw: bytes, descriptor: Descriptor) -> None:
        headers = {"Content-Type": descriptor.media_type}

        async def once() -> None:
            url = await self._client.url(f"manifests/{tag_or_digest}")
            async with self._client.request("PUT", url, self._scopes, headers, raw) as response:
                if response.status_code not in (_OK, _CREATED):
                    raise await self._client.refusal(response, f"manifest {tag_or_digest}")
                stored = response.headers.get("docker-content-digest", str(descriptor.digest))
                if stored != str(descriptor.digest):
                    raise ContentError(
                        f"{self._client}: stored {stored[:140]}, wanted {descriptor.digest}"
                    )

        await self._client.retry(once)


async def _bounded(descriptor: Descriptor, data: Data) -> AsyncGenerator[bytes, None]:
    """``data``, which must add up to what the descriptor says.

    Raises:
        ContentError: more or fewer bytes.
    """
    length = 0
    async with aclosing(regroup(data(), STREAM_PIECE_BYTES)) as pieces:
        async for piece in pieces:
            length += len(piece)
            if length > descriptor.size_bytes:
                break
            yield piece
    if length != descriptor.size_bytes:
        raise ContentError(
            f"{descriptor.digest}: the source gave {length} bytes, promised were "
            f"{descriptor.size_bytes}"
        )


async def _collect(descriptor: Descriptor, data: Data) -> bytes:
    return b"".join([piece async for piece in _bounded(descriptor, data)])
