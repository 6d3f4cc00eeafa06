"""Reading blobs from servers that redirect, lie, stall and break."""

import contextlib
import functools
import gzip
import random
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import trio
import trio.testing

from registry import blob as blob_module
from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import (
    ContentError,
    DeniedError,
    NoRangesError,
    NotFoundError,
    RegistryError,
    ResponseError,
    TooManyRequestsError,
    TransportError,
)
from registry.interfaces import Access, BlobReader
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.source import RegistrySource
from registry.transports import open_source
from registry.wire import Wire
from tests.support import fake_registry
from tests.support.fake_registry import FakeRegistry
from tests.support.http_server import Reply, Request, ScriptedServer, scripted_server

DATA = bytes(range(256)) * 40
BLOB = Descriptor(OCTET_STREAM, Digest.of(DATA), len(DATA))
PATH = f"/v2/a/b/blobs/{BLOB.digest}"
Answer = Callable[[Request], Reply]


def part(request: Request, data: bytes = DATA) -> Reply:
    """What an honest server answers."""
    if "range" not in request.headers:
        return Reply(200, data)
    first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
    headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Reply(206, data[first : last + 1], headers)


@contextlib.asynccontextmanager
async def serving(
    answer: Answer, timeout_s: float = 5
) -> AsyncIterator[tuple[ScriptedServer, BlobReader]]:
    """A registry with one blob; everything but that blob is answered with 200."""

    def whole(request: Request) -> Reply:
        return Reply(200) if request.path == "/v2/" else answer(request)

    async with (
        scripted_server(whole) as server,
        open_source(f"{server.host}/a/b:c", Access(timeout_s=timeout_s)) as source,
    ):
        yield server, await source.open_blob(BLOB)


async def collect(reader: BlobReader, offset: int, length: int) -> bytes:
    async with reader.stream(offset, length) as pieces:
        return b"".join([piece async for piece in pieces])


def asked(server: ScriptedServer) -> list[Request]:
    return [request for request in server.requests if request.path != "/v2/"]


async def test_honest_server():
    async with serving(part) as (server, reader):
        assert reader.origin == server.host
        assert await reader.fetch(100, 1000) == DATA[100:1100]
        assert await collect(reader, 100, 1000) == DATA[100:1100]
        assert [r.headers["range"] for r in asked(server)] == ["bytes=100-1099"] * 2
        assert {r.headers["accept-encoding"] for r in asked(server)} == {"identity"}
        assert await collect(reader, 0, len(DATA)) == DATA
        assert "range" not in server.requests[-1].headers
        before = len(server.requests)
        assert await reader.fetch(100, 0) == b""
        assert await collect(reader, len(DATA), 0) == b""
        with pytest.raises(ContentError, match="not inside"):
            await reader.fetch(1, len(DATA))
        assert len(server.requests) == before


async def test_server_without_ranges_is_read_once():
    async with serving(lambda _: Reply(200, DATA)) as (server, reader):
        assert await reader.fetch(300, 500) == DATA[300:800]
        assert await reader.fetch(len(DATA) - 3, 3) == DATA[-3:]
        assert await collect(reader, 300, 500) == DATA[300:800]
        assert len(asked(server)) == 1


async def test_many_readers_of_a_server_without_ranges_read_the_blob_once():
    data = random.Random(7).randbytes(24 << 20)  # far more than sockets hold
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    registry = FakeRegistry([data], sends_ranges=False)
    async with (
        fake_registry.serving(registry),
        open_source(f"{registry.host}/a/b:c", Access(timeout_s=60)) as source,
    ):
        reader = await source.open_blob(blob)

        async def read(offset: int) -> None:
            assert await reader.fetch(offset, 1000) == data[offset : offset + 1000]

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(read, number * 2_000_000)
        await read(5)
        assert registry.server is not None
        assert len(data) <= registry.server.sent_bytes < 2 * len(data)


async def test_server_without_ranges_and_a_large_blob(monkeypatch):
    monkeypatch.setattr(blob_module, "PREFIX_BYTES", 800)
    async with serving(lambda _: Reply(200, DATA)) as (server, reader):
        assert await reader.fetch(300, 500) == DATA[300:800]
        assert await reader.fetch(0, 10) == DATA[:10]
        for _ in range(20):
            with pytest.raises(NoRangesError, match="sends no ranges, only whole blobs, and 801"):
                await reader.fetch(301, 500)
        # Nothing was asked for in vain: neither the rest of the beginning, nor what is too deep.
        assert len(asked(server)) == 1
        assert await collect(reader, 0, len(DATA)) == DATA


async def test_server_without_ranges_that_sends_another_blob():
    async with serving(lambda _: Reply(200, bytes(len(DATA)))) as (_, reader):
        with pytest.raises(ContentError, match="wanted sha256"):
            await reader.fetch(300, 500)


GOOD = {"Content-Range": f"bytes 100-199/{len(DATA)}"}
LIES = {
    "short, and says so": (Reply(206, DATA[100:150], GOOD), ContentError, "50 bytes, wanted 100"),
    "short": (Reply(206, b"", GOOD, length=100, cut=True), TransportError, "connection"),
    "short, chunked": (Reply(206, b"", GOOD, chunked=True), TransportError, "lacks 100"),
    "long, and says so": (Reply(206, DATA[100:250], GOOD), ContentError, "150 bytes, wanted 100"),
    "long, chunked": (Reply(206, DATA[100:250], GOOD, chunked=True), ContentError, "longer than"),
    "other part": (
        Reply(206, DATA[:100], {"Content-Range": f"bytes 0-99/{len(DATA)}"}),
        TransportError,
        "asked for bytes 100-199, got 0-99",
    ),
    "other size": (
        Reply(206, DATA[100:200], {"Content-Range": "bytes 100-199/200"}),
        ContentError,
        "is 200 bytes there",
    ),
    "no Content-Range": (Reply(206, DATA[100:200]), TransportError, "Content-Range None"),
    "no range there": (
        Reply(416, b"", {"Content-Range": "bytes */50"}),
        ResponseError,
        r"refused \(416\)",
    ),
    "whole is shorter": (Reply(200, DATA[:150]), ContentError, "150 bytes, wanted"),
    "whole is cut": (
        Reply(200, DATA[:150], length=len(DATA), cut=True),
        TransportError,
        "connection",
    ),
    "whole is shorter, chunked": (Reply(200, DATA[:150], chunked=True), TransportError, "lacks"),
    "encoded": (
        Reply(206, gzip.compress(DATA), {**GOOD, "Content-Encoding": "gzip"}, chunked=True),
        ContentError,
        "content encoding 'gzip'",
    ),
    "nothing": (Reply(204), ResponseError, "204"),
    "redirect to nowhere": (Reply(307), TransportError, "without a usable Location"),
    "gone": (Reply(404), NotFoundError, "not found"),
    "forbidden": (Reply(403), DeniedError, "not allowed"),
    "not HTTP": (Reply(206, b"", {"Content-Length": "x"}), TransportError, "connection"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_lies(lie, autojump_clock):
    reply, error, why = LIES[lie]
    async with serving(lambda _: reply) as (server, reader):
        with pytest.raises(error, match=why) as caught:
            await reader.fetch(100, 100)
        assert server.host in str(caught.value)
        assert "\n" not in str(caught.value)
        # A stream asks again for what it lacks, so it may notice another lie first.
        with pytest.raises(error):
            await collect(reader, 100, 100)


async def test_whole_blob_that_goes_on():
    async with serving(lambda _: Reply(200, DATA + b"!", chunked=True)) as (_, reader):
        with pytest.raises(ContentError, match="longer than"):
            await reader.fetch(0, len(DATA))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_passing_trouble_is_waited_out(status, autojump_clock):
    replies = [Reply(status, headers={"Retry-After": "2"}), Reply(status)]
    async with serving(lambda r: replies.pop(0) if replies else part(r)) as (server, reader):
        began = trio.current_time()
        assert await reader.fetch(5, 5) == DATA[5:10]
        assert trio.current_time() - began >= 2
        assert len(asked(server)) == 3


async def test_retries_end(autojump_clock):
    reply = Reply(429, b'{"errors":[{"code":"TOOMANYREQUESTS"}]}', {"Retry-After": "3"})
    async with serving(lambda _: reply, timeout_s=5) as (server, reader):
        with pytest.raises(TooManyRequestsError, match="TOOMANYREQUESTS") as caught:
            await reader.fetch(5, 5)
        assert caught.value.retry_after_s == 3
        assert len(asked(server)) == 2  # a third try would begin after 6 s


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416, 501])
async def test_what_will_not_change_is_asked_once(status):
    async with serving(lambda _: Reply(status)) as (server, reader):
        with pytest.raises(ResponseError):
            await reader.fetch(5, 5)
        assert len(asked(server)) == 1


async def test_cut_connection_is_tried_again(autojump_clock):
    cut = Reply(206, DATA[100:150], GOOD, length=100, cut=True)
    replies = [cut, cut]
    async with serving(lambda r: replies.pop(0) if replies else part(r)) as (server, reader):
        assert await reader.fetch(100, 100) == DATA[100:200]
        assert len(asked(server)) == 3


async def test_cut_stream_goes_on_where_it_ended(autojump_clock):
    def answer(request: Request) -> Reply:
        reply = part(request)
        if len(reply.body) <= 1000:
            return reply
        return Reply(reply.status, reply.body[:1000], reply.headers, len(reply.body), cut=True)

    async with serving(answer) as (server, reader):
        assert await collect(reader, 0, 4500) == DATA[:4500]
        starts = [r.headers["range"] for r in asked(server)]
        assert starts == [f"bytes={n}-4499" for n in (0, 1000, 2000, 3000, 4000)][: len(starts)]


async def test_stream_that_never_gets_on_ends(autojump_clock):
    cut = Reply(200, b"", length=len(DATA), cut=True)
    async with serving(lambda _: cut) as (server, reader):
        with pytest.raises(TransportError):
            await collect(reader, 0, len(DATA))
        assert len(asked(server)) == 5


@pytest.mark.parametrize(
    "reply",
    [
        (Reply(hang=True), "no answer within"),
        (Reply(206, b"", GOOD, length=100, stall=True), "stalled for 2 s"),
    ],
    ids=["no answer", "stalls in the body"],
)
async def test_silence_ends(reply, autojump_clock):
    async with serving(lambda _: reply[0], timeout_s=6) as (_, reader):
        began = trio.current_time()
        with pytest.raises(TransportError, match=reply[1]):
            await reader.fetch(100, 100)
        assert trio.current_time() - began <= 6 + 2


async def test_trickle_ends(autojump_clock):
    async with (
        trickling(b"x", every_s=1.0) as host,
        open_source(f"{host}/a/b:c", Access(timeout_s=6)) as source,
    ):
        with pytest.raises(TransportError, match="too slowly"):
            await (await source.open_blob(BLOB)).fetch(0, len(DATA))


async def test_trickling_headers_end(autojump_clock):
    async with (
        trickling(b"x", every_s=1.0, head=False) as host,
        open_source(f"{host}/a/b:c", Access(timeout_s=6)) as source,
    ):
        with pytest.raises(TransportError, match="no complete answer within 6 s"):
            await (await source.open_blob(BLOB)).fetch(0, len(DATA))


@contextlib.asynccontextmanager
async def trickling(piece: bytes, every_s: float, head: bool = True) -> AsyncIterator[str]:
    """A server that sends blobs in drops."""

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while b"/blobs/" not in (request := await stream.receive_some()):
                await stream.send_all(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")
            _, _, wanted = request.lower().partition(b"range: bytes=")
            first = int(wanted.partition(b"-")[0] or 0)
            lines = (
                b"HTTP/1.1 206 X",
                b"Content-Range: bytes %d-%d/%d" % (first, len(DATA) - 1, len(DATA)),
                b"Content-Length: %d\r\n" % (len(DATA) - first),
            )
            await stream.send_all(b"\r\n".join(lines))
            await stream.send_all(b"\r\n" if head else b"X: ")
            while True:
                await trio.sleep(every_s)
                await stream.send_all(piece)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_nobody_listens(autojump_clock):
    async with scripted_server(part) as server:
        pass
    async with open_source(f"{server.host}/a/b:c", Access(timeout_s=5)) as source:
        with pytest.raises(TransportError, match=f"{server.host}: cannot connect"):
            await source.resolve()


@pytest.mark.parametrize(
    "reply",
    [Reply(hang=True), Reply(206, DATA[100:150], GOOD, length=100, stall=True)],
    ids=["before the answer", "in the body"],
)
async def test_cancelled_fetch_leaves_a_usable_source(reply):
    async with serving(lambda r: reply if r.headers["range"] == "bytes=100-199" else part(r)) as (
        _,
        reader,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.fetch, 100, 100)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert await reader.fetch(0, 10) == DATA[:10]


async def test_a_stream_that_is_left_early():
    async with serving(part) as (_, reader):
        async with reader.stream(0, 5000) as pieces:
            assert DATA.startswith(await anext(pieces))
        assert await reader.fetch(0, 10) == DATA[:10]


async def test_one_connection_serves_many_requests():
    async with serving(part) as (server, reader):
        for offset in range(5):
            await reader.fetch(offset, 10)
        assert len(server.requests) == 6
        assert server.connections == 1


async def test_many_fetches_at_once():
    async with serving(part) as (server, reader):
        found: dict[int, bytes] = {}

        async def fetch(offset: int) -> None:
            found[offset] = await reader.fetch(offset, 7)

        async with trio.open_nursery() as nursery:
            for offset in range(0, 2000, 10):
                nursery.start_soon(fetch, offset)
        assert found == {offset: DATA[offset : offset + 7] for offset in range(0, 2000, 10)}
        assert server.count("GET", "/v2/") == 1
        assert server.connections <= 64


# Redirects


@contextlib.asynccontextmanager
async def redirecting(
    storage: Answer, location: Callable[[str], str] = lambda host: f"http://{host}/signed?secret=s"
) -> AsyncIterator[tuple[ScriptedServer, ScriptedServer, BlobReader]]:
    """A registry that wants a password and sends blobs on to another origin."""
    async with scripted_server(storage) as elsewhere:

        def answer(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return Reply(307, headers={"Location": location(elsewhere.host), "Set-Cookie": "a=b"})

        async with scripted_server(answer) as server:
            access = Access(timeout_s=5, credentials=Credentials("u", "p"))
            async with open_source(f"{server.host}/a/b:c", access) as source:
                yield server, elsewhere, await source.open_blob(BLOB)


async def test_credentials_stay_at_home():
    async with redirecting(part) as (server, elsewhere, reader):
        assert await reader.fetch(10, 20) == DATA[10:30]
        assert await reader.fetch(30, 20) == DATA[30:50]
        assert any("authorization" in r.headers for r in server.requests)
        assert [r.target for r in elsewhere.requests] == ["/signed?secret=s"] * 2
        for request in elsewhere.requests:
            assert not {"authorization", "cookie"} & set(request.headers)
            assert request.headers["range"]
        assert (server.connections, elsewhere.connections) == (1, 1)
        # The second range went straight to where the first was sent.
        assert server.count("GET", PATH) == 2
        # And the registry gets none of its own cookies back either.
        assert not any("cookie" in r.headers for r in server.requests)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_expired_address_is_asked_for_again(status):
    replies = [part, lambda _: Reply(status), part]
    async with redirecting(lambda r: replies.pop(0)(r)) as (server, elsewhere, reader):
        assert await reader.fetch(10, 20) == DATA[10:30]
        asked_before = server.count("GET", PATH)
        assert await reader.fetch(30, 20) == DATA[30:50]
        assert server.count("GET", PATH) == asked_before + 1
        assert len(elsewhere.requests) == 3


async def test_a_refusal_elsewhere_is_no_challenge():
    def storage(request: Request) -> Reply:
        return Reply(401, headers={"WWW-Authenticate": 'Basic realm="give me"'})

    async with redirecting(storage) as (_, elsewhere, reader):
        with pytest.raises(DeniedError, match=f"at {elsewhere.host}"):
            await reader.fetch(10, 20)
        assert not any("authorization" in r.headers for r in elsewhere.requests)


def _give(reply: Reply, _: Request) -> Reply:
    return reply


async def test_no_message_holds_the_query_of_a_url(autojump_clock):
    for reply in (Reply(403), Reply(500), Reply(206), Reply(200, b"", cut=True, length=9)):
        async with redirecting(functools.partial(_give, reply)) as (_, _, reader):
            with pytest.raises(RegistryError) as caught:
                await reader.fetch(10, 20)
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (lambda _: "http://registry.example.com/x", "plain HTTP to another machine"),
        (lambda host: f"http://user:pw@{host}/x", "not plain HTTP"),
        (lambda _: "ftp://localhost/x", "not plain HTTP"),
        (lambda _: "file:///etc/passwd", "not plain HTTP"),
        (lambda _: "http://[::1/x", "without a usable Location"),
        (lambda _: "", "more than 5 redirects"),
        (lambda _: f"https://{'a' * 300}/x", "connection failed"),
        (lambda _: "https://a..b/x", "connection failed"),
        (lambda _: "https://xn--/x", "connection failed|usable Location"),
    ],
)
async def test_where_a_redirect_must_not_lead(location, why, autojump_clock):
    async with redirecting(part, location) as (_, elsewhere, reader):
        with pytest.raises(TransportError, match=why):
            await reader.fetch(10, 20)
        assert not elsewhere.requests


async def test_endless_redirects_end(autojump_clock):
    def storage(request: Request) -> Reply:
        return Reply(302, headers={"Location": request.target + "x"})

    async with redirecting(storage) as (_, _, reader):
        with pytest.raises(TransportError, match="more than 5 redirects"):
            await reader.fetch(10, 20)


async def test_credentials_do_not_come_back():
    """Registry, elsewhere, registry: the last request must not be one that elsewhere chose."""
    home = ""

    def storage(request: Request) -> Reply:
        return Reply(307, headers={"Location": f"http://{home}/v2/other/secret"})

    async with scripted_server(storage) as elsewhere:

        def answer(request: Request) -> Reply:
            if request.path == "/v2/other/secret":
                return part(request)
            if "authorization" not in request.headers:
                return Reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return Reply(307, headers={"Location": f"http://{elsewhere.host}/x"})

        async with scripted_server(answer) as server:
            home = server.host
            access = Access(credentials=Credentials("u", "p"))
            async with open_source(f"{server.host}/a/b:c", access) as source:
                await (await source.open_blob(BLOB)).fetch(0, 5)
            assert server.requests[-1].path == "/v2/other/secret"
            assert "authorization" not in server.requests[-1].headers


async def test_plain_http_elsewhere_must_be_asked_for():
    for plain_http, scheme in ((False, "https"), (True, "http")):
        async with open_source("registry.invalid/a/b:c", Access(plain_http)) as source:
            assert isinstance(source, RegistrySource)
            assert (
                str(await source.client.endpoints[0].url("x"))
                == f"{scheme}://registry.invalid/v2/a/b/x"
            )


async def test_no_way_back_from_https():
    wire = Wire(Access(plain_http=True))
    wire.check_target(httpx.URL("http://example.com/x"), httpx.URL("http://example.com/"))
    wire.check_target(httpx.URL("https://example.com/x"), httpx.URL("http://example.com/"))
    for target in ("http://example.com/x", "http://localhost/x"):
        with pytest.raises(TransportError, match="from HTTPS to HTTP"):
            wire.check_target(httpx.URL(target), httpx.URL("https://example.com/"))
