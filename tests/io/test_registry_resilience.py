"""Real registries, one as a mirror of the other, that break, lie and come back."""

import contextlib
import functools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import ContentError, RegistryError, ResponseError, TransportError
from registry.interfaces import Access, BlobReader
from registry.manifest import Descriptor, Index, Manifest, decode_manifest, describe
from registry.mediatype import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, OCTET_STREAM
from registry.push import RegistryDestination
from registry.reference import parse_reference
from registry.referrertag import fallback_tag
from registry.remote import open_client
from registry.source import RegistrySource
from registry.transports import open_destination, open_source
from tests.support.cutting_proxy import CuttingProxy, cutting_proxy
from tests.support.fake_registry import mirror_table, write_hosts
from tests.support.http_server import Reply, Request, scripted_server
from tests.support.image_copy import copy_image, read_image
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.tiny_image import TinyImage, write_layout

FILES = [{"etc/a": b"a" * 3000}, {"b": bytes(range(256)) * 8000}]


def access(hosts_dirs: tuple[Path, ...] = (), timeout_s: float = 20) -> Access:
    return Access(timeout_s=timeout_s, credentials=Credentials(), hosts_dirs=hosts_dirs)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with running_registry(tmp_path / "registry") as server:
        yield server


async def give(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def copy(source_name: str, target_name: str) -> None:
    async with (
        open_source(source_name, access()) as source,
        open_destination(target_name, access()) as destination,
    ):
        await copy_image(source, destination)


@contextlib.asynccontextmanager
async def two_registries(
    tmp_path: Path,
) -> AsyncIterator[tuple[RegistryServer, RegistryServer, TinyImage]]:
    """A registry and its mirror, both with the image ``app:v1``."""
    image = write_layout(tmp_path / "in", "v1", FILES, compress=False)
    with running_registry(tmp_path / "one") as one, running_registry(tmp_path / "two") as two:
        for server in (one, two):
            await copy(f"oci:{tmp_path}/in:v1", f"{server.host}/app:v1")
        yield one, two, image


async def proven(reader: BlobReader, data: bytes, offset: int, length: int) -> list[str]:
    """Read a range as the layers of lazyfs do: what is wrong is reported, and asked for again."""
    blamed: list[str] = []
    while (found := await reader.fetch(offset, length)) != data[offset : offset + length]:
        assert len(found) == length
        blamed.append(reader.distrust(offset, length))
        assert len(blamed) < 3
    return blamed


async def test_a_real_mirror_that_lies_then_dies(tmp_path):
    async with two_registries(tmp_path) as (registry, mirror, image):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        manifest = decode_manifest(image.manifest, OCI_MANIFEST)
        data = image.layers[1]
        path = mirror.blob_path(str(manifest.layers[1].digest))
        path.write_bytes(data[:100_000] + bytes(1000) + data[101_000:])
        async with open_source(f"{registry.host}/app:v1", access(hosts)) as source:
            assert (await source.resolve()).digest == Digest.of(image.manifest)
            reader = await source.open_blob(manifest.layers[1])
            assert await proven(reader, data, 0, 4096) == []
            assert await proven(reader, data, 99_000, 4096) == [mirror.host]
            assert await proven(reader, data, 99_000, 4096) == []
            states = {status.host: status for status in source.hosts()}
            assert states[mirror.host].state == "distrusted"
            assert states[registry.host].state == "ok"
            mirror.stop()
            assert await proven(reader, data, 0, len(data)) == []
            registry.stop()
            with pytest.raises(TransportError, match=registry.host):
                async with open_source(f"{registry.host}/app:v1", access(hosts, 1)) as other:
                    await other.resolve()


async def test_a_registry_that_is_gone_behind_a_mirror_that_is_there(tmp_path):
    async with two_registries(tmp_path) as (registry, mirror, image):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        registry.stop()
        async with open_source(f"{registry.host}/app:v1", access(hosts)) as source:
            assert await read_image(source) == (image.manifest, image.config, image.layers)


async def test_a_mirror_that_breaks_in_the_middle_of_a_large_layer(tmp_path):
    async with two_registries(tmp_path) as (registry, mirror, image):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        manifest = decode_manifest(image.manifest, OCI_MANIFEST)
        async with open_source(f"{registry.host}/app:v1", access(hosts)) as source:
            reader = await source.open_blob(manifest.layers[1])
            async with reader.stream(0, len(image.layers[1])) as pieces:
                got = await anext(pieces)
                mirror.stop()
                async for piece in pieces:
                    got += piece
            assert got == image.layers[1]


# Uploads that are interrupted


@contextlib.asynccontextmanager
async def destination(
    host: str, chunk_bytes: int, timeout_s: float = 20
) -> AsyncIterator[RegistryDestination]:
    reference = parse_reference(f"{host}/app:v1")
    async with open_client(reference, access(timeout_s=timeout_s)) as client:
        yield RegistryDestination(client, chunk_bytes)


@pytest.mark.parametrize("cut_after", [50_000, 400_000, 900_000])
async def test_an_upload_that_is_cut_arrives(registry, cut_after):
    data = bytes(n % 251 for n in range(1_000_000))
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    starts = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal starts
        starts += 1
        for offset in range(0, len(data), 100_000):
            yield data[offset : offset + 100_000]

    async with (
        cutting_proxy(registry.host) as proxy,
        destination(proxy.host, 300_000) as target,
    ):
        proxy.cut_after = cut_after
        await target.push_blob(blob, source)
        assert proxy.cuts == 1
        # This registry (2.8) does not go on with a chunk of which it has a part.
        assert starts <= 2
    assert registry.blob_path(str(blob.digest)).read_bytes() == data


async def test_a_registry_that_is_restarted_during_an_upload(tmp_path):
    data = bytes(n % 251 for n in range(1_000_000))
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(running_registry(tmp_path / "registry"))

        async def source(proxy: CuttingProxy) -> AsyncIterator[bytes]:
            yield data[:500_000]
            first.stop()
            again = stack.enter_context(running_registry(tmp_path / "registry"))
            proxy.server = again.host
            yield data[500_000:]

        async with (
            cutting_proxy(first.host) as proxy,
            destination(proxy.host, 100_000) as target,
        ):
            await target.push_blob(blob, functools.partial(source, proxy))
            assert await target.has_blob(blob)


@pytest.mark.parametrize("kept", [0, 2, 300, 1000])
async def test_an_upload_goes_on_where_it_was_cut(kept, autojump_clock):
    got = b""
    cut = iter([False, True, True])

    def answer(request: Request) -> Reply:
        nonlocal got
        state = {"Location": "/upload/1"} | ({"Range": f"0-{len(got) - 1}"} if got else {})
        if request.method == "HEAD":
            return Reply(404)
        if request.method == "POST":
            return Reply(202, headers=state)
        if request.method == "PATCH":
            first, last = map(int, request.headers["content-range"].split("-"))
            assert (first, last - first + 1) == (len(got), len(request.body))
            cutting = next(cut, False)
            got += request.body[:kept] if cutting else request.body
            return Reply(raw=b"") if cutting else Reply(202, headers={"Location": "/upload/1"})
        if request.method == "GET" and request.path.startswith("/upload"):
            return Reply(204, headers=state)
        return Reply(201 if request.method == "PUT" else 200)

    data = bytes(n % 251 for n in range(5000))
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    async with scripted_server(answer) as server, destination(server.host, 1000) as target:
        await target.push_blob(blob, functools.partial(give, data))
        assert got == data
        assert [r.method for r in server.requests].count("POST") == 1


async def test_an_upload_that_the_registry_has_forgotten_begins_again(autojump_clock):
    stored: list[bytes] = []
    uploads: dict[str, bytes] = {}
    forget = iter([True])

    def answer(request: Request) -> Reply:
        if request.method == "POST":
            name = f"/upload/{len(uploads)}"
            uploads[name] = b""
            return Reply(202, headers={"Location": name})
        if request.method == "HEAD":
            return Reply(404)
        if request.path not in uploads:
            return Reply(404 if request.path.startswith("/upload/") else 200)
        if request.method == "PATCH":
            if uploads[request.path] and next(forget, False):
                del uploads[request.path]
                return Reply(raw=b"")
            uploads[request.path] += request.body
            end = len(uploads[request.path]) - 1
            return Reply(202, headers={"Location": request.path, "Range": f"0-{end}"})
        if request.method == "PUT":
            stored.append(uploads.pop(request.path))
            return Reply(201)
        return Reply(204)

    data = bytes(5000)
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    async with scripted_server(answer) as server, destination(server.host, 1000) as target:
        await target.push_blob(blob, functools.partial(give, data))
        assert stored == [data]
        assert [r.method for r in server.requests].count("POST") == 2


# What refers to an image


async def push_signature(
    target: RegistryDestination, subject: Descriptor, content: bytes, artifact_type: str
) -> Descriptor:
    blob = describe(content, OCTET_STREAM)
    empty = describe(b"{}", OCI_EMPTY)
    for descriptor, data in ((blob, content), (empty, b"{}")):
        await target.push_blob(descriptor, functools.partial(give, data))
    manifest = Manifest(empty, (blob,), artifact_type=artifact_type, subject=subject)
    raw = manifest.encode()
    made = describe(raw, OCI_MANIFEST)
    made = Descriptor(
        OCI_MANIFEST, made.digest, made.size_bytes, {"made": "here"}, artifact_type=artifact_type
    )
    await target.push_referrer(raw, made, subject.digest)
    return made


async def test_referrers_of_a_registry_without_such_lists(tmp_path, registry):
    image = write_layout(tmp_path / "in", "v1", FILES)
    name = f"{registry.host}/app:v1"
    await copy(f"oci:{tmp_path}/in:v1", name)
    subject = describe(image.manifest, OCI_MANIFEST)
    async with (
        destination(registry.host, 1000) as target,
        open_source(name, access()) as source,
    ):
        assert isinstance(source, RegistrySource)
        assert await source.list_referrers(subject.digest) == ()
        one = await push_signature(target, subject, b"one", "application/x.one")
        two = await push_signature(target, subject, b"two", "application/x.two")
        assert await source.list_referrers(subject.digest) == (one, two)
        assert await source.list_referrers(subject.digest, "application/x.two") == (two,)
        assert await source.list_referrers(subject.digest, "application/x.three") == ()
        # Once more changes nothing.
        assert await push_signature(target, subject, b"one", "application/x.one") == one
        assert set(await source.list_referrers(subject.digest)) == {one, two}
        manifest = decode_manifest(await source.fetch_manifest(two), OCI_MANIFEST)
        assert manifest.subject == subject
        assert (await source.resolve()).digest == subject.digest  # the image is what it was
    tag = f"{registry.host}/app:{fallback_tag(subject.digest)}"
    async with open_source(tag, access()) as source:
        assert (await source.resolve()).media_type == OCI_INDEX


SUBJECT = Digest.of(b"the image")
ENTRIES = [
    Descriptor(OCI_MANIFEST, Digest.of(bytes([n])), 1, artifact_type=f"type/{n % 2}")
    for n in range(6)
]


def listing(request: Request) -> Reply:
    """A registry that gives two entries a page, and does not filter."""
    if not request.path.endswith(f"/referrers/{SUBJECT}"):
        return Reply(200 if request.path == "/v2/" else 404)
    page = int(request.target.rpartition("page=")[2]) if "page=" in request.target else 0
    headers = {"Content-Type": OCI_INDEX}
    if page < 2:
        headers["Link"] = f'<{request.path}?page={page + 1}>; rel="next"'
    return Reply(200, Index(tuple(ENTRIES[2 * page : 2 * page + 2])).encode(), headers)


async def ask_referrers(answer, artifact_type: str = "") -> tuple[list[Descriptor], list[Request]]:
    async with (
        scripted_server(answer) as server,
        open_client(parse_reference(f"{server.host}/a:b"), access(timeout_s=5)) as client,
    ):
        found = await RegistrySource(client).list_referrers(SUBJECT, artifact_type)
        return list(found), server.requests


async def test_lists_of_several_pages():
    assert (await ask_referrers(listing))[0] == ENTRIES
    found, requests = await ask_referrers(listing, "type/1")
    assert found == ENTRIES[1::2]
    assert requests[1].target.endswith("?artifactType=type%2F1")


def in_place(**headers: str):
    def answer(request: Request) -> Reply:
        reply = listing(request)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Reply(reply.status, reply.body, {**reply.headers, **named})

    return answer


def everywhere(reply: Reply):
    return lambda request: reply if "referrers" in request.path else listing(request)


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (in_place(Link="<http://127.0.0.1:1/x>; rel=next"), TransportError, "at another host"),
        (in_place(Link="<http://[::1/x>; rel=next"), TransportError, "at no URL"),
        (
            lambda r: Reply(200, listing(r).body, {"Link": f"<{r.target}>; rel=next"}),
            ContentError,
            "32 pages",
        ),
        (everywhere(Reply(200, b"{}")), ContentError, "schema version"),
        (
            everywhere(Reply(200, b"<html>", {"Content-Type": "text/html"})),
            TransportError,
            "web page",
        ),
        (
            everywhere(Reply(200, json.dumps({"schemaVersion": 2, "config": {}}).encode())),
            ContentError,
            "config",
        ),
        (everywhere(Reply(200, bytes(5 << 20))), ContentError, "limit"),
        (everywhere(Reply(403)), ResponseError, "403"),
        (everywhere(Reply(503)), ResponseError, "503"),
    ],
)
async def test_odd_lists(answer, error, why, autojump_clock):
    with pytest.raises(error, match=why) as caught:
        await ask_referrers(answer)
    assert isinstance(caught.value, RegistryError)
    assert "127.0.0.1" in str(caught.value) or "index" in str(caught.value)


@pytest.mark.parametrize("status", [400, 404, 405, 406, 501])
async def test_registries_without_lists_have_a_tag(status):
    def answer(request: Request) -> Reply:
        if request.path.endswith(f"/manifests/{fallback_tag(SUBJECT)}"):
            return Reply(200, Index(tuple(ENTRIES)).encode(), {"Content-Type": OCI_INDEX})
        return Reply(status if "referrers" in request.path else 200)

    assert (await ask_referrers(answer, "type/0"))[0] == ENTRIES[::2]
    assert (await ask_referrers(lambda r: Reply(status if "referrers" in r.path else 404)))[0] == []


async def test_a_list_that_is_none_says_nothing_of_the_host():
    def answer(request: Request) -> Reply:
        return Reply(200, b"surprise", {"Content-Type": OCI_INDEX})

    async with (
        scripted_server(answer) as server,
        open_client(parse_reference(f"{server.host}/a:b"), access(timeout_s=5)) as client,
    ):
        with pytest.raises(ContentError):
            await RegistrySource(client).list_referrers(SUBJECT)
        (host,) = client.hosts()
        assert (host.state, host.wrong_answers) == ("ok", 0)


async def test_a_push_to_a_registry_with_lists_writes_no_tag():
    def answer(request: Request) -> Reply:
        return Reply(201, headers={"OCI-Subject": str(SUBJECT)})

    async with scripted_server(answer) as server, destination(server.host, 1000) as target:
        await target.push_referrer(b"{}", describe(b"{}", OCI_MANIFEST), SUBJECT)
        assert [r.method for r in server.requests if "manifests" in r.path] == ["PUT"]


def test_fallback_tags():
    assert fallback_tag(Digest.of(b"")) == f"sha256-{Digest.of(b'').encoded}"
    assert len(fallback_tag(Digest.of(b"", "sha512"))) == len("sha512-") + 64
