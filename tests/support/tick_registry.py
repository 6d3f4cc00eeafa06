"""A registry that is one virtual second away: what happens at the same time costs one second.

It stands in for the HTTP transport, so that logins, redirects, connections and hosts are as they
would be. Use it with trio's ``autojump_clock``, and with ``threads_at_once`` (no clock waits for a
thread): then ``trio.current_time()`` counts round trips.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import pytest
import trio

import registry.connections
from tests.support.layer_layouts import TAG, Layout

HOST = "registry.test"
REPOSITORY = "some/image"
NAME = f"{HOST}/{REPOSITORY}:{TAG}"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_BLOB = re.compile(rf"/v2/{REPOSITORY}/blobs/sha256:([0-9a-f]{{64}})")
_MANIFEST = re.compile(rf"/v2/{REPOSITORY}/manifests/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")

T = TypeVar("T")


@dataclass
class TickRegistry:
    """Serves the image of a layout folder, whoever asks."""

    layout: Layout
    token: bool = False
    """Whether it wants a token, which another host gives."""
    storage: bool = False
    """Whether blobs are redirected to another host."""
    index: bool = False
    """Whether the tag names an index of one manifest."""
    handshake: int = 0
    """Round trips to set up a connection: 1 for TCP, 1 more for TLS."""
    requests: list[str] = field(default_factory=list)
    """Paths, in order; with the range."""
    body_bytes: int = 0
    connections: int = 0
    _idle: dict[str, int] = field(default_factory=dict)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The answer, as if it took no time."""
        path, wanted = request.url.path, request.headers.get("range", "")
        if "/referrers/" in path or "/manifests/sha256-" in path:
            return httpx.Response(404)  # asked for beside, by who looks for a profile
        self.requests.append(f"{path} {wanted}".strip())
        if path == "/token":
            return httpx.Response(200, json={"token": "t", "expires_in": 3600})
        if self.token and request.url.host == HOST and "authorization" not in request.headers:
            challenge = 'Bearer realm="https://auth.test/token",service="s"'
            return httpx.Response(401, headers={"www-authenticate": challenge})
        if match := _MANIFEST.fullmatch(path):
            return self._manifest(match[1])
        match = _BLOB.fullmatch(path)
        assert match, path
        if self.storage and request.url.host == HOST:
            return httpx.Response(307, headers={"location": f"https://storage.test{path}"})
        return self._blob(self.layout.blob(f"sha256:{match[1]}").read_bytes(), wanted)

    def _manifest(self, which: str) -> httpx.Response:
        media_type = str(self.layout.manifest["mediaType"])
        raw = self.layout.blob(self.layout.manifest_digest).read_bytes()
        if self.index and which == TAG:
            entry = {
                "mediaType": media_type,
                "digest": self.layout.manifest_digest,
                "size": len(raw),
            }
            document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}
            media_type, raw = INDEX_TYPE, json.dumps(document).encode()
        return httpx.Response(200, headers={"content-type": media_type}, content=raw)

    def _blob(self, data: bytes, wanted: str) -> httpx.Response:
        span = _RANGE.fullmatch(wanted)
        if not span:
            self.body_bytes += len(data)
            return httpx.Response(200, content=data)
        start, last = int(span[1]), int(span[2])
        part = data[start : last + 1]
        self.body_bytes += len(part)
        content_range = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return httpx.Response(206, headers={"content-range": content_range}, content=part)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Be what all connections lead to."""
        patch.setattr(registry.connections, "_open_transport", lambda tls, proxy: _Wire(self))

    async def connect(self, host: str) -> None:
        """Take a kept connection, or set up one."""
        if self._idle.get(host, 0):
            self._idle[host] -= 1
            return
        self.connections += 1
        await trio.sleep(self.handshake)

    def hang_up(self, host: str) -> None:
        """An answer was read: its connection can be used again."""
        self._idle[host] = self._idle.get(host, 0) + 1


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, server: TickRegistry) -> None:
        self._server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        await self._server.connect(host)
        await trio.sleep(1)
        answer = self._server.answer(request)
        body = _Body(answer.content, lambda: self._server.hang_up(host))
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body)


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes, done: Callable[[], None]) -> None:
        self._content = content
        self._done: Callable[[], None] | None = done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield self._content

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._done is not None:
            self._done()
            self._done = None


def threads_at_once(patch: pytest.MonkeyPatch) -> None:
    """Have what is given to threads done on the spot."""

    async def run_sync(work: Callable[..., T], *args: object, **_: object) -> T:
        await trio.lowlevel.checkpoint()
        return work(*args)

    patch.setattr(trio.to_thread, "run_sync", run_sync)


async def ticks(work: Callable[[], Awaitable[T]]) -> tuple[T, float]:
    """What ``work`` gives, and how many round trips it took, one after the other."""
    began = trio.current_time()
    result = await work()
    return result, trio.current_time() - began
