"""A registry in memory whose answers can be broken in any way, and mirrors of it.

async with fake_registry(FakeRegistry(blobs=[data])) as registry:
    registry.breaks = one_time(Reply(503))
    ...  # registry.host, registry.ranges() and registry.server.requests
"""

import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.http_server import Reply, Request, ScriptedServer, scripted_server

Break = Callable[[Request, Reply], Reply]
"""From a request and what an honest server would answer to what this one does."""

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def honest(request: Request, reply: Reply) -> Reply:
    return reply


def always(broken: Reply | Break) -> Break:
    return (lambda request, reply: broken) if isinstance(broken, Reply) else broken


def first(count: int, broken: Reply | Break) -> Break:
    """Break so many answers, then be honest."""
    left = [count]
    how = always(broken)

    def answer(request: Request, reply: Reply) -> Reply:
        left[0] -= 1
        return how(request, reply) if left[0] >= 0 else reply

    return answer


@dataclass
class FakeRegistry:
    """Serves blobs and manifests of any repository."""

    blobs: Sequence[bytes] = ()
    manifest: bytes = b""
    breaks: Break = honest
    """What becomes of the answers to requests for blobs and manifests."""
    sends_ranges: bool = True
    """Otherwise all of a blob is sent, whatever is asked for."""
    sends_several: bool = True
    """Otherwise all of a blob is sent where more than one range is asked for."""
    server: ScriptedServer | None = None
    prefix: str = "/v2"
    _by_digest: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_digest = {sha256(blob): blob for blob in self.blobs}

    @property
    def host(self) -> str:
        assert self.server is not None
        return self.server.host

    def content(self) -> list[Request]:
        """The requests for blobs and manifests."""
        assert self.server is not None
        kinds = ("/blobs/", "/manifests/")
        return [r for r in self.server.requests if any(kind in r.path for kind in kinds)]

    def ranges(self) -> list[str]:
        """What ranges were asked for, in order; ``all`` where none was."""
        return [r.headers.get("range", "all").removeprefix("bytes=") for r in self.content()]

    def answer(self, request: Request) -> Reply:
        kind, _, name = request.path.removeprefix(self.prefix).rpartition("/")
        if kind.endswith("/blobs"):
            return self.breaks(request, self._blob(request, name))
        if kind.endswith("/manifests"):
            return self.breaks(request, self._manifest(name))
        return Reply(404 if kind.endswith("/referrers") else 200)

    def _blob(self, request: Request, digest: str) -> Reply:
        data = self._by_digest.get(digest)
        if data is None:
            return Reply(404, json.dumps({"errors": [{"code": "BLOB_UNKNOWN"}]}).encode())
        if "range" not in request.headers or not self.sends_ranges:
            return Reply(200, data)
        ranges = request.headers["range"].removeprefix("bytes=").split(",")
        if len(ranges) > 1:
            spans = [(int(first), int(last)) for first, last in (r.split("-") for r in ranges)]
            return multipart(data, spans) if self.sends_several else Reply(200, data)
        start, end = map(int, ranges[0].split("-"))
        if start >= len(data):
            return Reply(416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        return Reply(206, data[start : end + 1], headers)

    def _manifest(self, name: str) -> Reply:
        other = ":" in name and name != sha256(self.manifest)
        if not self.manifest or other or name.startswith("sha256-"):  # the tag of referrers
            return Reply(404, json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN"}]}).encode())
        return Reply(200, self.manifest, {"Content-Type": MANIFEST_TYPE})


def multipart(data: bytes, spans: Sequence[tuple[int, int]], boundary: str = "b0undary") -> Reply:
    """Several ranges of a blob, given by their first and last bytes."""
    body = b"".join(
        f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Range: bytes {first}-{last}/{len(data)}\r\n\r\n".encode()
        + data[first : last + 1]
        for first, last in spans
    )
    headers = {"Content-Type": f"multipart/byteranges; boundary={boundary}"}
    return Reply(206, body + f"\r\n--{boundary}--\r\n".encode(), headers)


@contextlib.asynccontextmanager
async def serving(
    registry: FakeRegistry, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeRegistry]:
    """Serve it on a free port of the loopback."""
    async with scripted_server(registry.answer, tls=tls) as server:
        registry.server = server
        yield registry


def write_hosts(folder: Path, registry: str, text: str) -> tuple[Path, ...]:
    """Write ``hosts.toml`` for a registry; what ``Access.hosts_dirs`` wants."""
    place = folder / "certs.d" / registry
    place.mkdir(parents=True, exist_ok=True)
    (place / "hosts.toml").write_text(text)
    return (folder / "certs.d",)


def mirror_table(*urls: str, extra: str = "") -> str:
    """The text of a ``hosts.toml`` with those mirrors, the registry itself after them."""
    return "\n".join(f'[host."{url}"]\ncapabilities = ["pull", "resolve"]\n{extra}' for url in urls)
