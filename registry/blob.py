"""A blob in a registry as random access to its unverified bytes, by HTTP range requests.

Registries often redirect blobs to a signed URL elsewhere. That address is remembered for the
ranges that follow and asked for again when it stops working. An answer that breaks off is taken up
where it ended, at the same host or the next.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import trio

from registry.answers import OK, PARTIAL, Wanted, check_head, exact_body
from registry.attempts import Attempts, may_pass, note_failure
from registry.client import RegistryClient, Served
from registry.deadlines import INFINITE
from registry.digest import verify
from registry.endpoint import Endpoint, pull_scope
from registry.errors import (
    ContentError,
    NoRangesError,
    OneRangeError,
    RegistryError,
    ResponseError,
    TransportError,
)
from registry.hedge import hedged
from registry.hosts import Capability
from registry.httperrors import host_of
from registry.manifest import Descriptor
from registry.ranges import Range, check_range, range_header
from registry.retry import RETRIED_STATUSES
from registry.wire import origin

PROGRESS_BYTES = 64 << 10
"""A stream that got so much further starts again to count its tries and its time."""
HEDGE_LIMIT_BYTES = 16 << 20
"""Longer ranges are asked for once only: they are no demand that somebody waits for."""
HEDGE_SHARE = 1 / 4
"""A second request is sent after this part of the time at the latest."""
PREFIX_BYTES = 32 << 20
"""What is kept in memory of a blob that a server gives as a whole only; no more is read of it."""
PREFIXES_BYTES = 64 << 20
"""The same of all blobs together."""
INLINE_BYTES = 256 << 10
"""Less than this is checked at once: it takes no longer than handing it to a thread."""
LACKS_IT_S = 60.0
"""How long a host that does not have (or give) the blob is asked last."""
STALE_STATUSES = frozenset({400, 401, 403, 404, 410})
"""What a signed URL answers when it has expired, depending on the storage."""
OTHER_REASONS = STALE_STATUSES - {400} | RETRIED_STATUSES - {500}
"""Refusals that would be the same if one range had been asked for in place of several."""


@dataclass(slots=True)
class _AtHost:
    """What is known of the blob at one host."""

    url: httpx.URL | None = None
    target: httpx.URL | None = None
    """Where the host sent us, elsewhere."""
    avoid_until: float = 0.0
    sends_ranges: bool = True


class RemoteBlob:
    """One blob of a repository (a ``BlobReader``)."""

    def __init__(self, client: RegistryClient, descriptor: Descriptor) -> None:
        self._client = client
        self._descriptor = descriptor
        self._at = {endpoint: _AtHost() for endpoint in client.able(Capability.PULL)}
        self._whole = trio.Lock()
        """Held by who reads the beginning of a blob that comes as a whole; the others wait."""
        self._what = f"{client}: {descriptor.digest}"

    @property
    def size_bytes(self) -> int:
        """As ``BlobReader.size_bytes``."""
        return self._descriptor.size_bytes

    @property
    def origin(self) -> str:
        """As ``BlobReader.origin``."""
        return self._client.reference.endpoint

    @property
    def ranges_at_once(self) -> int:
        """As ``BlobReader.ranges_at_once``."""
        return self._client.several.at_once

    async def fetch(self, offset: int, length: int) -> bytes:
        """As ``BlobReader.fetch``; tries again within the time limit.

        Cancelled: the connection is closed.
        """
        async with self.stream(offset, length) as pieces:
            return b"".join([piece async for piece in pieces])

    def stream(
        self, offset: int, length: int, *more: Range
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As ``BlobReader.stream``; of one range, a cut connection is taken up where it ended."""
        ranges = ((offset, length), *more)
        for where in ranges:
            check_range(*where, self.size_bytes, self._what)
        return self._stream(ranges)

    def distrust(self, offset: int, length: int) -> str:
        """As ``BlobReader.distrust``."""
        self._client.prefixes.pop(self._descriptor.digest, None)
        blamed = self._who_served(offset, offset + length)
        if len({served.endpoint for served in blamed}) > 1:
            # One of them it was: a mirror more likely than the registry.
            blamed = [served for served in blamed if served.endpoint.is_mirror]
        names = []
        for served in blamed:
            self._at[served.endpoint].target = None
            name = served.endpoint.name
            name += "" if served.host == name else f" (at {served.host})"
            error = ContentError(f"{self._what}: wrong bytes in {length} at {offset} from {name}")
            note_failure(served.endpoint, error)
            names.append(name)
        return ", ".join(dict.fromkeys(names)) or self.origin

    def _who_served(self, offset: int, end: int) -> list[Served]:
        """The last answers that gave a range; an answer goes at most to where the next begins."""
        found = []
        for served in reversed(self._client.served):
            if (
                served.blob == self._descriptor.digest
                and served.start < end
                and offset < served.end
            ):
                found.append(served)
                end = max(served.start, offset)
                if end <= offset:
                    break
        return found

    @asynccontextmanager
    async def _stream(self, ranges: tuple[Range, ...]) -> AsyncIterator[AsyncIterator[bytes]]:
        bytes_of = self._together(ranges) if len(ranges) > 1 else self._pieces(*ranges[0])
        async with aclosing(bytes_of) as pieces:
            yield pieces

    async def _pieces(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        position, end = offset, offset + length
        attempts = self._client.attempts(Capability.PULL)
        mark = position
        while position < end:
            if kept := self._prefix(position, end):
                yield kept
                return
            avoid = self._avoided()
            endpoint = attempts.choose(avoid)
            wanted = Wanted(self._descriptor, ((position, end - position),), self._what)
            try:
                async with self._answer(endpoint, attempts, avoid, wanted) as (endpoint, body):
                    async for piece in body:
                        position += len(piece)
                        yield piece
                attempts.succeeded(endpoint)
            except RegistryError as error:
                if isinstance(error, ResponseError | NoRangesError) and not may_pass(error):
                    self._at[endpoint].avoid_until = trio.current_time() + LACKS_IT_S
                if position - mark >= PROGRESS_BYTES:
                    mark = position
                    attempts.progressed()
                await attempts.failed(endpoint, error)

    async def _together(self, ranges: tuple[Range, ...]) -> AsyncGenerator[bytes, None]:
        """Several ranges by one answer; whatever fails is not tried again."""
        attempts = self._client.attempts(Capability.PULL)
        avoid = self._avoided()
        endpoint = attempts.choose(avoid)
        wanted = Wanted(self._descriptor, ranges, self._what)
        try:
            with self._client.several.tried():
                async with self._answer(endpoint, attempts, avoid, wanted) as (endpoint, body):
                    async for piece in body:
                        yield piece
            attempts.succeeded(endpoint)
        except RegistryError as error:
            note_failure(endpoint, error)
            raise

    def _avoided(self) -> list[Endpoint]:
        now = trio.current_time()
        return [endpoint for endpoint, known in self._at.items() if now < known.avoid_until]

    @asynccontextmanager
    async def _answer(
        self, first: Endpoint, attempts: Attempts, avoid: list[Endpoint], wanted: Wanted
    ) -> AsyncIterator[tuple[Endpoint, AsyncIterator[bytes]]]:
        """One answer, of whom it is, and its body as pieces of exactly the wanted bytes."""
        open_at = partial(self._open, wanted)
        longest_s = self._client.deadlines.total_s * HEDGE_SHARE
        delay_s = first.health.hedge_after_s(longest_s)
        async with AsyncExitStack() as stack:
            with trio.move_on_at(attempts.ends_at) as limit:
                if delay_s is None or wanted.length > HEDGE_LIMIT_BYTES:
                    endpoint = first
                    host, body = await stack.enter_async_context(open_at(first))
                else:
                    second = partial(attempts.second, first, avoid)
                    race = hedged(first, second, delay_s, open_at)
                    endpoint, (host, body) = await stack.enter_async_context(race)
                for start, length in wanted.ranges:
                    self._client.served.append(
                        Served(wanted.blob.digest, start, start + length, endpoint, host)
                    )
                limit.deadline = INFINITE
            if limit.cancelled_caught:
                raise attempts.expired(first)
            yield endpoint, body

    @asynccontextmanager
    async def _open(
        self, wanted: Wanted, endpoint: Endpoint
    ) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """The answer of one host: who sends it in the end, and its body."""
        known = self._at[endpoint]
        if not known.sends_ranges and trio.current_time() < known.avoid_until:
            refuse_beyond_prefix(wanted)
            async with self._whole:
                if kept := self._prefix(*wanted.only):
                    yield endpoint.name, _one(kept)
                    return
        headers = {} if wanted.is_whole else {"Range": range_header(wanted.ranges)}
        async with self._respond(endpoint, headers) as response:
            status = response.status_code
            if status not in (OK, PARTIAL) and (not wanted.are_several or status in OTHER_REASONS):
                raise await endpoint.refusal(response, f"blob {self._descriptor.digest}")
            check_head(response, wanted)
            host = host_of(response.url)
            if status == OK and not wanted.is_whole:
                known.sends_ranges = False
                known.avoid_until = trio.current_time() + LACKS_IT_S
                refuse_beyond_prefix(wanted)
                yield host, _one(await self._cut_out(endpoint, response, wanted))
                return
            async with aclosing(exact_body(endpoint.wire, response, wanted)) as body:
                yield host, body

    def _prefix(self, position: int, end: int) -> bytes:
        """A range out of the kept beginning of a blob; empty if it is not there."""
        kept = self._client.prefixes.get(self._descriptor.digest, b"")
        return kept[position:end] if end <= len(kept) else b""

    async def _cut_out(self, endpoint: Endpoint, response: httpx.Response, wanted: Wanted) -> bytes:
        """A range out of an answer with the whole blob, which one reader reads for all."""
        start, end = wanted.only
        async with self._whole:
            if kept := self._prefix(start, end):
                return kept
            prefix = await self._read_prefix(endpoint, response)
        host = host_of(response.url)
        self._client.served.append(Served(self._descriptor.digest, 0, len(prefix), endpoint, host))
        return prefix[start:end]

    async def _read_prefix(self, endpoint: Endpoint, response: httpx.Response) -> bytes:
        """Read the beginning of a blob that comes as a whole, and keep it for other ranges.

        Raises:
            RegistryError: it does not come, or is not the promised blob.
        """
        length = min(self.size_bytes, PREFIX_BYTES)
        wanted = Wanted(self._descriptor, ((0, length),), self._what)
        async with aclosing(exact_body(endpoint.wire, response, wanted)) as body:
            prefix = b"".join([piece async for piece in body])
        if wanted.is_whole:
            check = partial(verify, prefix, self._descriptor.digest, length, self._what)
            if length > INLINE_BYTES:
                await trio.to_thread.run_sync(check)
            else:
                check()
        self._keep(prefix)
        return prefix

    def _keep(self, prefix: bytes) -> None:
        """Memory is bounded, whatever the number of layers: the oldest goes first."""
        prefixes = self._client.prefixes
        prefixes.pop(self._descriptor.digest, None)
        while prefixes and sum(map(len, prefixes.values())) + len(prefix) > PREFIXES_BYTES:
            del prefixes[next(iter(prefixes))]
        prefixes[self._descriptor.digest] = prefix

    @asynccontextmanager
    async def _respond(
        self, endpoint: Endpoint, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """The answer of where the blob is, asking the host when we do not know (any more)."""
        known = self._at[endpoint]
        if (target := known.target) is not None:
            try:
                began = trio.current_time()
                async with endpoint.wire.exchange("GET", target, headers) as response:
                    if response.status_code not in STALE_STATUSES:
                        endpoint.health.first_byte(trio.current_time() - began)
                        yield response
                        return
            except TransportError:
                known.target = None
                raise
            known.target = None
        if known.url is None:
            known.url = await endpoint.url(f"blobs/{self._descriptor.digest}")
        scopes = pull_scope(self._client.reference)
        async with endpoint.request("GET", known.url, scopes, headers) as response:
            # Not where the host sends us to itself: that needs our credentials each time.
            elsewhere = origin(response.url) != origin(known.url)
            if elsewhere and response.status_code in (OK, PARTIAL):
                known.target = response.url
            yield response


def refuse_beyond_prefix(wanted: Wanted) -> None:
    """Refuse what lies too deep in a blob that comes as a whole only.

    Raises:
        NoRangesError: it does.
        OneRangeError: it is several ranges; of each the same is to be asked.
    """
    if wanted.are_several:
        raise OneRangeError(f"{wanted.what}: the server sends no ranges, only whole blobs")
    _, end = wanted.only
    if end > PREFIX_BYTES and not wanted.is_whole:
        raise NoRangesError(
            f"{wanted.what}: the server sends no ranges, only whole blobs, and {end} bytes of it "
            f"pass the limit of {PREFIX_BYTES}: this image cannot be read lazily from there"
        )


async def _one(piece: bytes) -> AsyncGenerator[bytes, None]:
    yield piece
