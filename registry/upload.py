"""Sends the bytes of one blob to a host (distribution-spec, "Pushing blobs").

Small blobs go in one piece. Larger ones go in chunks, so that no proxy's limit on the size of a
request is met, and a connection that breaks costs one chunk at most: the host is asked how far it
got. A host that takes no chunks gets the blob as one stream. It checks the digest of what arrives
(the specification demands it), so it is not computed here once more.
"""

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from urllib.parse import quote

import httpx
import trio

from registry.attempts import may_pass
from registry.auth import Scopes
from registry.connections import Content
from registry.endpoint import Endpoint
from registry.errors import (
    ContentError,
    ProtocolError,
    RegistryError,
    ResponseError,
    TransportError,
)
from registry.httperrors import host_of
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.pieces import regroup
from registry.retry import RetryPolicy

log = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 20
CHUNK_LIMIT_BYTES = 128 << 20
"""Largest chunk that a registry may demand; one is held in memory."""
STREAM_PIECE_BYTES = 1 << 20
NO_CHUNKS_STATUSES = frozenset({400, 404, 405, 411, 413, 416, 501})
"""What registries that take no chunks have been seen to answer to one."""
NO_BODY = {"Content-Length": "0"}
_CREATED, _ACCEPTED, _NO_CONTENT, _BAD_REQUEST = 201, 202, 204, 400
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})", re.ASCII)

Data = Callable[[], AsyncIterable[bytes]]


class NoChunksError(RegistryError):
    """The registry refused a chunk; the whole may still be welcome."""


class Upload:
    """One upload at one host."""

    def __init__(
        self, endpoint: Endpoint, scopes: Scopes, descriptor: Descriptor, chunk_bytes: int
    ) -> None:
        self._endpoint = endpoint
        self._scopes = scopes
        self._descriptor = descriptor
        self._chunk_bytes = chunk_bytes
        self._what = f"blob {descriptor.digest}"
        self._session: httpx.URL | None = None

    async def send(self, data: Data) -> None:
        """Send the blob.

        Raises:
            ContentError: ``data`` gave other bytes than the descriptor promises.
            RegistryError: the registry does not take it; the upload is given up.
        """
        try:
            if self._descriptor.size_bytes <= self._chunk_bytes:
                await self._send_whole(b"".join([piece async for piece in self._bounded(data)]))
                return
            try:
                await self._send_chunks(data)
            except NoChunksError as error:
                log.debug("%s; sending the blob as one stream", error)
                await self.give_up()
                async with aclosing(self._bounded(data)) as stream:
                    await self._send_whole(stream)
        except RegistryError:
            await self.give_up()
            raise

    async def _send_whole(self, content: Content) -> None:
        await self._begin()
        await self._finish(content)

    async def _send_chunks(self, data: Data) -> None:
        smallest = await self._begin()
        sent = 0
        size_bytes = max(self._chunk_bytes, smallest)
        async with aclosing(regroup(self._bounded(data), size_bytes)) as chunks:
            async for chunk in chunks:
                await self._send_chunk(chunk, sent)
                sent += len(chunk)
        await self._finish(b"")

    async def _begin(self) -> int:
        """Open an upload; return the least size of a chunk in bytes."""
        url = await self._endpoint.url("blobs/uploads/")
        async with self._endpoint.request("POST", url, self._scopes, NO_BODY) as response:
            if response.status_code != _ACCEPTED:
                raise await self._endpoint.refusal(response, "upload")
            smallest = response.headers.get("oci-chunk-min-length", "0")
            if not (smallest.isascii() and smallest.isdigit() and len(smallest) < 19):
                smallest = "0"
            if int(smallest) > CHUNK_LIMIT_BYTES:
                raise ContentError(
                    f"{self._endpoint}: wants chunks of {smallest} bytes, at most "
                    f"{CHUNK_LIMIT_BYTES} are held"
                )
            self._session = self._endpoint.wire.resolve_location(response)
            return int(smallest)

    async def _send_chunk(self, chunk: bytes, start: int) -> None:
        """Send one chunk, going on where the registry is when the connection breaks."""
        end = start + len(chunk)
        position = start
        policy = RetryPolicy(self._endpoint.wire.deadlines.total_s, attempts=None)
        began, tries = trio.current_time(), 0
        while True:
            try:
                if tries:
                    position = await self._ask_position(start, end)
                if position < end:
                    await self._patch(chunk[position - start :], position)
                break
            except (TransportError, ResponseError) as error:
                if isinstance(error, ProtocolError) or not may_pass(error):
                    raise
                tries += 1
                elapsed_s = trio.current_time() - began
                wanted_s = error.retry_after_s if isinstance(error, ResponseError) else None
                delay_s = policy.delay_s(tries, elapsed_s, wanted_s, 1.0)
                if delay_s is None:
                    raise
                log.debug("%s; going on with the upload in %.1f s", error, delay_s)
                await trio.sleep(delay_s)

    async def _patch(self, chunk: bytes, position: int) -> None:
        session = self._address()
        headers = {
            "Content-Type": OCTET_STREAM,
            "Content-Range": f"{position}-{position + len(chunk) - 1}",
        }
        async with self._endpoint.request(
            "PATCH", session, self._scopes, headers, chunk
        ) as response:
            if response.status_code in NO_CHUNKS_STATUSES:
                refusal = await self._endpoint.refusal(response, "chunk of an upload")
                raise NoChunksError(str(refusal)) from refusal
            if response.status_code != _ACCEPTED:
                raise await self._endpoint.refusal(response, "chunk of an upload")
            arrived = _RANGE.fullmatch(response.headers.get("range", ""))
            self._session = self._endpoint.wire.resolve_location(response)
            if arrived and int(arrived[1]) != position + len(chunk) - 1:
                raise TransportError(
                    f"{self._endpoint}: upload has {int(arrived[1]) + 1} bytes, "
                    f"{position + len(chunk)} were sent"
                )

    async def _ask_position(self, start: int, end: int) -> int:
        """How many bytes the registry has (distribution-spec, "Resuming an upload").

        Raises:
            ProtocolError: it does not say, or not a number between ``start`` and ``end``; the
                upload must begin anew.
            RegistryError: no answer.
        """
        session = self._address()
        async with self._endpoint.request("GET", session, self._scopes, {}) as response:
            if response.status_code >= _BAD_REQUEST:
                refusal = await self._endpoint.refusal(response, "state of an upload")
                if may_pass(refusal):
                    raise refusal
                # Such as docker-registry 2.8, when it has got a part of a chunk.
                raise ProtocolError(f"{self._endpoint}: an upload was lost: {refusal}")
            arrived = _RANGE.fullmatch(response.headers.get("range", ""))
            if response.status_code != _NO_CONTENT or arrived is None:
                raise ProtocolError(f"{self._endpoint}: does not say how far an upload is")
            self._session = self._endpoint.wire.resolve_location(response)
        # "0-0" means one byte or none; nobody can tell which, so it counts as none.
        position = int(arrived[1]) + 1 if int(arrived[1]) else 0
        if not start <= position <= end:
            raise ProtocolError(
                f"{self._endpoint}: the upload is at byte {position}, not in {start} to {end}"
            )
        return position

    async def _finish(self, content: Content) -> None:
        """End an upload with its last (or all) bytes and the digest of the whole."""
        session = self._address()
        # The query of the address is the registry's own and must come back unchanged.
        mark = "&" if session.query else "?"
        digest = quote(str(self._descriptor.digest), safe="")
        url = httpx.URL(f"{session}{mark}digest={digest}")
        length = len(content) if isinstance(content, bytes) else self._descriptor.size_bytes
        headers = {"Content-Type": OCTET_STREAM, "Content-Length": str(length)}
        async with self._endpoint.request("PUT", url, self._scopes, headers, content) as response:
            if response.status_code == _CREATED:
                self._session = None
                return
            refusal = await self._endpoint.refusal(response, self._what)
        if refusal.code in ("DIGEST_INVALID", "SIZE_INVALID"):
            raise ContentError(f"{refusal}; the source gave other bytes than it promised")
        raise refusal

    async def give_up(self) -> None:
        """Tell the registry that the upload will not be finished; it may not care."""
        session, self._session = self._session, None
        if session is not None:
            await abandon(self._endpoint, session, self._scopes)

    def _address(self) -> httpx.URL:
        if self._session is None:
            raise ProtocolError(f"{self._endpoint}: the upload is over")
        return self._session

    async def _bounded(self, data: Data) -> AsyncGenerator[bytes, None]:
        """``data``, which must add up to what the descriptor says.

        Raises:
            ContentError: more or fewer bytes.
        """
        length = 0
        wanted = self._descriptor.size_bytes
        async with aclosing(regroup(data(), STREAM_PIECE_BYTES)) as pieces:
            async for piece in pieces:
                length += len(piece)
                if length > wanted:
                    break
                yield piece
        if length != wanted:
            raise ContentError(
                f"{self._descriptor.digest}: the source gave {length} bytes, promised were {wanted}"
            )


async def abandon(endpoint: Endpoint, session: httpx.URL, scopes: Scopes) -> None:
    """Tell a registry that an upload will not be finished."""
    try:
        async with endpoint.request("DELETE", session, scopes, {}) as response:
            log.debug("%s: upload given up: %d", host_of(session), response.status_code)
    except RegistryError as error:
        log.debug("%s: upload not given up: %s", host_of(session), error)
