"""A blob in a registry as random access to its unverified bytes, by HTTP range requests.

Registries often redirect blobs to a signed URL elsewhere. That address is remembered for the ranges
that follow and asked for again when it stops working.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import httpx
import trio

from registry.client import RegistryClient, pull_scope
from registry.errors import ContentError, ResponseError, TransportError
from registry.manifest import Descriptor
from registry.ranges import check_content_range, check_range, range_header
from registry.wire import origin

SKIP_LIMIT_BYTES = 64 << 20
"""Most bytes thrown away when a server sends the whole blob instead of a range."""
PROGRESS_BYTES = 1 << 20
"""A stream that got so much further starts again to count its tries."""
STALE_STATUSES = frozenset({400, 401, 403, 404, 410})
"""What a signed URL answers when it has expired, depending on the storage."""
_OK, _PARTIAL = 200, 206


class RemoteBlob:
    """One blob of a repository (a ``BlobReader``)."""

    def __init__(self, client: RegistryClient, descriptor: Descriptor) -> None:
        self._client = client
        self._descriptor = descriptor
        self._url: httpx.URL | None = None
        self._target: httpx.URL | None = None
        self._what = f"{client}: {descriptor.digest}"

    @property
    def size_bytes(self) -> int:
        """As ``BlobReader.size_bytes``."""
        return self._descriptor.size_bytes

    @property
    def origin(self) -> str:
        """As ``BlobReader.origin``."""
        return self._client.reference.endpoint

    async def fetch(self, offset: int, length: int) -> bytes:
        """As ``BlobReader.fetch``; tries again within the time limit.

        Cancelled: the connection is closed.
        """
        check_range(offset, length, self.size_bytes, self._what)
        if not length:
            return b""

        async def once() -> bytes:
            async with self._open(offset, length) as body:
                return b"".join([piece async for piece in body])

        return await self._client.retry(once)

    def stream(self, offset: int, length: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As ``BlobReader.stream``; a cut connection is taken up again where it ended."""
        check_range(offset, length, self.size_bytes, self._what)
        return self._stream(offset, length)

    @asynccontextmanager
    async def _stream(self, offset: int, length: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async with aclosing(self._pieces(offset, offset + length)) as pieces:
            yield pieces

    async def _pieces(self, position: int, end: int) -> AsyncGenerator[bytes, None]:
        mark, began, tries = position, trio.current_time(), 0
        while position < end:
            try:
                async with self._open(position, end - position) as body:
                    async for piece in body:
                        position += len(piece)
                        yield piece
            except (TransportError, ResponseError) as error:
                if position - mark >= PROGRESS_BYTES:
                    mark, began, tries = position, trio.current_time(), 0
                tries += 1
                await self._client.pause(error, tries, began)

    @asynccontextmanager
    async def _open(self, offset: int, length: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """One answer as pieces of exactly the wanted bytes (at least one)."""
        whole = length == self.size_bytes
        headers = {} if whole else {"Range": range_header(offset, length)}
        async with self._answer(headers) as response:
            if response.status_code == _PARTIAL:
                check_content_range(
                    response.headers.get("content-range"),
                    offset,
                    length,
                    self.size_bytes,
                    self._what,
                )
                self._check_length(response, length)
                skip = 0
            elif response.status_code == _OK:
                self._check_length(response, self.size_bytes)
                skip = offset
                if skip > SKIP_LIMIT_BYTES:
                    raise ContentError(
                        f"{self._what}: the server sends no ranges, and {skip} bytes to skip "
                        f"pass the limit of {SKIP_LIMIT_BYTES}"
                    )
            else:
                raise await self._client.refusal(response, f"blob {self._descriptor.digest}")
            async with aclosing(self._exactly(response, skip, length)) as body:
                yield body

    def _check_length(self, response: httpx.Response, wanted: int) -> None:
        header = response.headers.get("content-length")
        if header is not None and header != str(wanted):
            raise ContentError(f"{self._what}: answer of {header[:20]} bytes, wanted {wanted}")

    async def _exactly(
        self, response: httpx.Response, skip: int, length: int
    ) -> AsyncGenerator[bytes, None]:
        """``length`` bytes of the body behind ``skip``; a body that ends too early is an error.

        So is one that goes on, unless it is the whole blob of which a part is wanted.
        """
        missing = length
        partial = response.status_code == _PARTIAL
        async with aclosing(self._client.wire.pieces(response)) as pieces:
            async for piece in pieces:
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                wanted = piece[skip : skip + missing]
                if len(wanted) < len(piece) - skip and (partial or length == self.size_bytes):
                    raise ContentError(f"{self._what}: answer is longer than {length} bytes")
                skip = 0
                missing -= len(wanted)
                if wanted:
                    yield wanted
                if not missing and not (partial or length == self.size_bytes):
                    return
        if missing:
            raise TransportError(f"{self._what}: answer lacks {missing} of {length} bytes")

    @asynccontextmanager
    async def _answer(self, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """The answer of where the blob is, asking the registry when we do not know (any more)."""
        if (target := self._target) is not None:
            try:
                async with self._client.wire.exchange("GET", target, headers) as response:
                    if response.status_code not in STALE_STATUSES:
                        yield response
                        return
            except TransportError:
                self._target = None
                raise
            self._target = None
        url = self._url or await self._client.url(f"blobs/{self._descriptor.digest}")
        self._url = url
        scopes = pull_scope(self._client.reference)
        async with self._client.request("GET", url, scopes, headers) as response:
            # Not where the registry sends us to itself: that needs our credentials each time.
            elsewhere = origin(response.url) != origin(url)
            if elsewhere and response.status_code in (_OK, _PARTIAL):
                self._target = response.url
            yield response
