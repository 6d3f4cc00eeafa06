"""Pushing to registries with habits of their own."""

import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest

from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import ContentError, RegistryError, ResponseError, TransportError
from registry.interfaces import Access
from registry.manifest import Descriptor
from registry.mediatype import OCI_MANIFEST, OCTET_STREAM
from registry.push import RegistryDestination
from registry.reference import parse_reference
from registry.remote import open_client
from registry.source import RegistrySource
from tests.support.http_server import Reply, Request, scripted_server

DATA = bytes(range(256)) * 20
BLOB = Descriptor(OCTET_STREAM, Digest.of(DATA), len(DATA))
UPLOAD = "/upload/1?_state=a%2Bb%3D%3D"


@dataclass
class Habits:
    """A registry in memory that takes one upload at a time."""

    chunks_status: int = 202
    smallest_chunk: str | None = None
    loses_a_chunk: bool = False
    finish_statuses: list[int] = field(default_factory=list)
    uploads_at: str = ""
    wants_login: bool = False
    forgets_login_at: str = ""
    data: bytes = b""
    stored: bytes | None = None
    chunks: list[int] = field(default_factory=list)

    def answer(self, request: Request) -> Reply:
        if self.wants_login and "authorization" not in request.headers:
            return Reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if request.method == self.forgets_login_at:
            self.forgets_login_at = ""
            return Reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        answer: Callable[[Request], Reply] = getattr(self, f"answer_{request.method.lower()}")
        return answer(request)

    def answer_get(self, request: Request) -> Reply:
        return Reply(200)

    def answer_head(self, request: Request) -> Reply:
        if self.stored is None:
            return Reply(404)
        return Reply(200, length=len(self.stored))

    def answer_post(self, request: Request) -> Reply:
        assert request.headers["content-length"] == "0"
        self.data = b""
        headers = {"Location": self.uploads_at + UPLOAD}
        if self.smallest_chunk is not None:
            headers["OCI-Chunk-Min-Length"] = self.smallest_chunk
        return Reply(202, headers=headers)

    def answer_patch(self, request: Request) -> Reply:
        assert request.target == UPLOAD
        if self.chunks_status != 202:
            return Reply(self.chunks_status)
        first = len(self.data)
        last = first + len(request.body) - 1
        assert request.headers["content-range"] == f"{first}-{last}"
        assert request.headers["content-type"] == "application/octet-stream"
        self.chunks.append(len(request.body))
        if self.loses_a_chunk:
            self.loses_a_chunk = False
            return Reply(202, headers={"Location": UPLOAD, "Range": "0-0"})
        self.data += request.body
        return Reply(202, headers={"Location": UPLOAD, "Range": f"0-{last}"})

    def answer_put(self, request: Request) -> Reply:
        if self.finish_statuses:
            return Reply(self.finish_statuses.pop(0))
        target, _, digest = request.target.rpartition("&")
        assert target == UPLOAD  # its query came back as it was given
        assert request.headers["content-length"] == str(len(request.body))
        whole = self.data + request.body
        if parse_qs(digest) != {"digest": [str(Digest.of(whole))]}:
            return Reply(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
        self.stored = whole
        return Reply(201)

    def answer_delete(self, request: Request) -> Reply:
        return Reply(204)


async def give(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def push_to(habits: Habits, chunk_bytes: int = 1000) -> list[Request]:
    async with scripted_server(habits.answer) as server:
        access = Access(timeout_s=5, credentials=Credentials("u", "p"))
        async with open_client(parse_reference(f"{server.host}/a:b"), access) as client:
            target = RegistryDestination(client, chunk_bytes)
            await target.push_blob(BLOB, functools.partial(give, DATA[:99], DATA[99:]))
            assert await target.has_blob(BLOB)
    assert habits.stored == DATA
    return server.requests


async def test_chunks():
    habits = Habits()
    await push_to(habits)
    assert habits.chunks == [1000] * 5 + [120]


async def test_a_least_size_of_chunks():
    habits = Habits(smallest_chunk="3000")
    await push_to(habits)
    assert habits.chunks == [3000, 2120]


@pytest.mark.parametrize("smallest", ["x", "-1", ""])
async def test_a_broken_least_size_is_passed_over(smallest):
    await push_to(Habits(smallest_chunk=smallest))


async def test_a_least_size_beyond_reason():
    with pytest.raises(ContentError, match="wants chunks of"):
        await push_to(Habits(smallest_chunk="999999999999"))


@pytest.mark.parametrize("status", [400, 404, 405, 411, 413, 416, 501])
async def test_registries_without_chunks_get_a_stream(status):
    habits = Habits(chunks_status=status)
    requests = await push_to(habits)
    assert habits.chunks == []
    (put,) = [request for request in requests if request.method == "PUT"]
    assert put.body == DATA
    assert "transfer-encoding" not in put.headers


async def test_small_blobs_go_in_one_piece():
    requests = await push_to(Habits(), 10_000)
    methods = [request.method for request in requests]
    assert methods == ["GET", "HEAD", "POST", "PUT", "HEAD"]


async def test_a_lost_chunk_is_noticed(autojump_clock):
    requests = await push_to(Habits(loses_a_chunk=True))
    assert [request.method for request in requests].count("POST") == 2


async def test_a_registry_that_stumbles(autojump_clock):
    await push_to(Habits(finish_statuses=[503, 500]))
    with pytest.raises(ResponseError, match="503"):
        await push_to(Habits(finish_statuses=[503, 503, 503]))
    with pytest.raises(ResponseError, match="507"):
        await push_to(Habits(finish_statuses=[507]))


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
async def test_a_login_that_is_asked_for_late(method):
    await push_to(Habits(wants_login=True, forgets_login_at=method))


async def test_a_login_that_expires_under_a_stream(autojump_clock):
    await push_to(Habits(chunks_status=405, wants_login=True, forgets_login_at="PUT"))


async def test_an_upload_elsewhere_gets_no_credentials():
    habits = Habits(wants_login=True)
    elsewhere = Habits()
    async with scripted_server(elsewhere.answer) as other:
        habits.uploads_at = f"http://{other.host}"
        with pytest.raises(AssertionError):  # stored there, not here
            await push_to(habits, 10_000)
        assert elsewhere.stored == DATA
        assert other.requests
        assert not any("authorization" in request.headers for request in other.requests)


async def test_an_upload_must_not_leave_this_machine_without_tls():
    with pytest.raises(TransportError, match="plain HTTP to another machine"):
        await push_to(Habits(uploads_at="http://registry.example.com"))


async def test_a_manifest_that_comes_out_as_another():
    def answer(request: Request) -> Reply:
        other = str(Digest.of(b"other"))
        return Reply(201, headers={"Docker-Content-Digest": other})

    async with (
        scripted_server(answer) as server,
        open_client(parse_reference(f"{server.host}/a:b")) as client,
    ):
        target = RegistryDestination(client)
        descriptor = Descriptor(OCI_MANIFEST, Digest.of(b"{}"), 2)
        with pytest.raises(ContentError, match="stored sha256"):
            await target.tag(descriptor, b"{}")


async def test_a_blob_that_is_there_with_another_size():
    habits = Habits(stored=b"short")
    with pytest.raises(ContentError, match="is 5 bytes there"):
        await push_to(habits)


async def test_a_mount_that_is_refused():
    def answer(request: Request) -> Reply:
        if request.method == "POST":
            query = parse_qs(urlsplit(request.target).query)
            assert query == {"mount": [str(BLOB.digest)], "from": ["one"]}
            return Reply(405)
        return Reply(200)

    async with (
        scripted_server(answer) as server,
        open_client(parse_reference(f"{server.host}/two:b")) as here,
        open_client(parse_reference(f"{server.host}/one:b")) as there,
    ):
        assert await RegistryDestination(here).mount_blob(BLOB, RegistrySource(there)) is False


@pytest.mark.parametrize("status", [204, 301, 307, 409, 418, 500])
async def test_a_manifest_that_is_refused(status, autojump_clock):
    async with (
        scripted_server(lambda _: Reply(status)) as server,
        open_client(parse_reference(f"{server.host}/a:b")) as client,
    ):
        with pytest.raises(RegistryError, match=server.host):
            await RegistryDestination(client).push_manifest(
                b"{}", Descriptor(OCI_MANIFEST, Digest.of(b"{}"), 2)
            )
