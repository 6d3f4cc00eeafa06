"""Against a real docker-registry: pushing, reading, logging in, with skopeo on the other side."""

import contextlib
import functools
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from registry import endpoint, push
from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import (
    ContentError,
    DeniedError,
    NotFoundError,
    RegistryError,
    TransportError,
)
from registry.interfaces import Access
from registry.manifest import Descriptor, Index, decode_manifest, describe
from registry.mediatype import OCI_INDEX, OCI_MANIFEST, OCTET_STREAM
from registry.push import RegistryDestination
from registry.reference import parse_reference
from registry.remote import open_client
from registry.transports import open_destination, open_source
from tests.support.http_server import Reply, Request, scripted_server
from tests.support.image_copy import copy_blob, copy_image, read_image
from tests.support.registry_server import (
    PASSWORD,
    USERNAME,
    Certificate,
    RegistryServer,
    running_registry,
)
from tests.support.tiny_image import write_layout
from tests.support.token_server import REFRESH_TOKEN, TokenServer, token_server

FILES = [{"etc/a": b"a" * 3000}, {"b": bytes(range(256)) * 8000}]
LOGIN = Credentials(USERNAME, PASSWORD)
ANONYMOUS = Access(timeout_s=20, credentials=Credentials())


def skopeo(*words: object) -> bytes:
    command = ["skopeo", "--insecure-policy", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with running_registry(tmp_path / "registry") as server:
        yield server


@pytest.fixture
def basic_registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with running_registry(tmp_path / "registry", basic=True) as server:
        yield server


@contextlib.asynccontextmanager
async def token_registry(tmp_path: Path) -> AsyncIterator[tuple[RegistryServer, TokenServer]]:
    async with token_server(Certificate.make(tmp_path)) as service:
        with running_registry(tmp_path / "registry", token=service.authority) as server:
            yield server, service


async def copy(source_name: str, target_name: str, access: Access = ANONYMOUS) -> Descriptor:
    async with (
        open_source(source_name, access) as source,
        open_destination(target_name, access) as destination,
    ):
        return await copy_image(source, destination)


@contextlib.asynccontextmanager
async def destination(
    name: str, chunk_bytes: int, access: Access = ANONYMOUS
) -> AsyncIterator[RegistryDestination]:
    async with open_client(parse_reference(name), access) as client:
        yield RegistryDestination(client, chunk_bytes)


async def give(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_skopeo_reads_what_we_push(tmp_path, registry):
    image = write_layout(tmp_path / "in", "v1", FILES)
    name = f"{registry.host}/some/app:v2"
    descriptor = await copy(f"oci:{tmp_path}/in:v1", name)
    assert str(descriptor.digest) == image.digest
    found = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert found["Digest"] == image.digest
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/back:x")
    async with open_source(f"oci:{tmp_path}/back:x") as source:
        assert await read_image(source) == (image.manifest, image.config, image.layers)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
async def test_we_read_what_skopeo_pushes(tmp_path, registry, form):
    write_layout(tmp_path / "in", "v1", FILES)
    name = f"{registry.host}/some/app:v2"
    target = f"docker://{name}"
    skopeo("copy", "--dest-tls-verify=false", "-f", form, f"oci:{tmp_path}/in:v1", target)
    raw = skopeo("inspect", "--tls-verify=false", "--raw", target)
    for wanted in (name, f"{registry.host}/some/app@{Digest.of(raw)}"):
        async with open_source(wanted, ANONYMOUS) as source:
            descriptor = await source.resolve()
            manifest, config, layers = await read_image(source)
            assert manifest == raw
            assert descriptor.digest == Digest.of(raw)
            assert json.loads(config)["architecture"] == "amd64"
            promised = decode_manifest(raw, descriptor.media_type).layers
            assert [Digest.of(layer) for layer in layers] == [layer.digest for layer in promised]


async def test_an_index_of_several_platforms(tmp_path, registry):
    images = [
        write_layout(tmp_path / "in", name, FILES, architecture)
        for name, architecture in (("one", "amd64"), ("two", "arm64"))
    ]
    index = json.loads((tmp_path / "in/index.json").read_text())
    raw = Index(
        tuple(
            Descriptor(OCI_MANIFEST, Digest.of(image.manifest), len(image.manifest))
            for image in images
        )
    ).encode()
    descriptor = describe(raw, OCI_INDEX)
    (tmp_path / "in/blobs/sha256" / descriptor.digest.encoded).write_bytes(raw)
    entry = {"mediaType": OCI_INDEX, "digest": str(descriptor.digest), "size": len(raw)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "all"}
    index["manifests"].append(entry)
    (tmp_path / "in/index.json").write_text(json.dumps(index))
    name = f"{registry.host}/app:all"
    assert await copy(f"oci:{tmp_path}/in:all", name) == descriptor
    assert skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}") == raw
    # And back, to a folder.
    assert await copy(name, f"oci:{tmp_path}/back:x") == descriptor
    async with open_source(f"oci:{tmp_path}/back@{images[1].digest}") as source:
        assert (await read_image(source))[0] == images[1].manifest


async def test_ranges(tmp_path, registry):
    image = write_layout(tmp_path / "in", "v1", FILES, compress=False)
    name = f"{registry.host}/app:v1"
    await copy(f"oci:{tmp_path}/in:v1", name)
    async with open_source(name, ANONYMOUS) as source:
        manifest = decode_manifest(image.manifest, OCI_MANIFEST)
        reader = await source.open_blob(manifest.layers[1])
        whole = image.layers[1]
        assert await reader.fetch(100_000, 5000) == whole[100_000:105_000]
        assert await reader.fetch(len(whole) - 1, 1) == whole[-1:]
        async with reader.stream(1, len(whole) - 1) as pieces:
            assert b"".join([piece async for piece in pieces]) == whole[1:]
        registry.blob_path(str(manifest.layers[1].digest)).write_bytes(whole[:50_000])
        with pytest.raises(RegistryError, match=r"refused \(416|is 50000 bytes there"):
            await reader.fetch(100_000, 5000)
        with pytest.raises(ContentError, match="50000 bytes"):
            await reader.fetch(0, 5000)


async def test_what_is_stored_is_checked(tmp_path, registry):
    image = write_layout(tmp_path / "in", "v1", FILES)
    name = f"{registry.host}/app:v1"
    await copy(f"oci:{tmp_path}/in:v1", name)
    manifest = decode_manifest(image.manifest, OCI_MANIFEST)
    path = registry.blob_path(str(manifest.config.digest))
    path.write_bytes(path.read_bytes().replace(b"amd64", b"amd65"))
    path = registry.blob_path(image.digest)
    path.write_bytes(path.read_bytes().replace(b"tar+gzip", b"tar+gzap"))
    async with open_source(name, ANONYMOUS) as source:
        with pytest.raises(ContentError, match=f"wanted .*{manifest.config.digest.encoded}, found"):
            await source.fetch_content(manifest.config, 1 << 20)
        with pytest.raises(RegistryError, match=registry.host):
            await source.resolve()
        with pytest.raises(RegistryError, match=registry.host):
            await source.fetch_manifest(describe(image.manifest, OCI_MANIFEST))
        with pytest.raises(ContentError, match="limit of 10"):
            await source.fetch_content(manifest.config, 10)


async def test_what_is_not_there(registry):
    async with open_source(f"{registry.host}/some/app:v1", ANONYMOUS) as source:
        with pytest.raises(NotFoundError, match=f"{registry.host}/some/app.*404.*MANIFEST_UNKNOWN"):
            await source.resolve()
        blob = await source.open_blob(Descriptor(OCTET_STREAM, Digest.of(b"x"), 1))
        with pytest.raises(NotFoundError, match=r"(BLOB|NAME)_UNKNOWN"):
            await blob.fetch(0, 1)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2000, 3500])
async def test_blobs_of_any_size_go_in_chunks(registry, size):
    data = bytes(n % 251 for n in range(size))
    blob = Descriptor(OCTET_STREAM, Digest.of(data), size)
    async with destination(f"{registry.host}/app:v1", 1000) as target:
        assert not await target.has_blob(blob)
        await target.push_blob(blob, functools.partial(give, data[:700], data[700:]))
        assert await target.has_blob(blob)
        await target.push_blob(blob, functools.partial(give, b"not asked for"))
    assert registry.blob_path(str(blob.digest)).read_bytes() == data


async def test_sha512(registry):
    data = b"content"
    blob = Descriptor(OCTET_STREAM, Digest.of(data, "sha512"), len(data))
    async with destination(f"{registry.host}/app:v1", 3) as target:
        await target.push_blob(blob, functools.partial(give, data))
        assert await target.has_blob(blob)


@pytest.mark.parametrize("chunk_bytes", [4, 1000])
@pytest.mark.parametrize("wrong", [b"content!", b"conten", b"CONTENT"])
async def test_other_bytes_than_promised_are_not_stored(registry, chunk_bytes, wrong):
    blob = Descriptor(OCTET_STREAM, Digest.of(b"content"), 7)
    async with destination(f"{registry.host}/app:v1", chunk_bytes) as target:
        with pytest.raises(ContentError):
            await target.push_blob(blob, functools.partial(give, wrong))
        assert not await target.has_blob(blob)
    if len(wrong) != 7:
        # Nor is anything left of the upload. (What has the wrong digest, this registry keeps.)
        assert not list(registry.storage.rglob("data"))


async def test_a_source_that_breaks_is_asked_again(registry):
    data = b"content" * 1000
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    calls = 0

    async def breaks_once() -> AsyncIterator[bytes]:
        nonlocal calls
        calls += 1
        yield data[:3000]
        if calls == 1:
            raise TransportError("the source went away")
        yield data[3000:]

    async with destination(f"{registry.host}/app:v1", 1000) as target:
        await target.push_blob(blob, breaks_once)
        assert await target.has_blob(blob)
    assert calls == 2


async def test_blobs_are_mounted_from_another_repository(tmp_path, registry, monkeypatch):
    image = write_layout(tmp_path / "in", "v1", FILES)
    await copy(f"oci:{tmp_path}/in:v1", f"{registry.host}/one:v1")

    def never(*_: object) -> None:
        raise AssertionError("a blob was uploaded")

    monkeypatch.setattr(push.RegistryDestination, "push_blob", never)
    assert (
        str((await copy(f"{registry.host}/one:v1", f"{registry.host}/two:v1")).digest)
        == image.digest
    )
    async with open_source(f"{registry.host}/two:v1", ANONYMOUS) as source:
        assert await read_image(source) == (image.manifest, image.config, image.layers)


async def test_what_cannot_be_mounted(tmp_path, registry):
    write_layout(tmp_path / "in", "v1", FILES)
    blob = Descriptor(OCTET_STREAM, Digest.of(b"x"), 1)
    async with (
        open_destination(f"{registry.host}/two:v1", ANONYMOUS) as target,
        open_source(f"{registry.host}/one:v1", ANONYMOUS) as same_registry,
        open_source("other.example.com/one:v1", ANONYMOUS) as other_registry,
        open_source(f"oci:{tmp_path}/in:v1") as folder,
    ):
        for source in (same_registry, other_registry, folder):
            assert await target.mount_blob(blob, source) is False


async def test_a_manifest_goes_by_digest_and_by_tag(tmp_path, registry):
    image = write_layout(tmp_path / "in", "v1", FILES)
    descriptor = describe(image.manifest, OCI_MANIFEST)
    async with (
        open_source(f"oci:{tmp_path}/in:v1") as source,
        open_destination(f"{registry.host}/app:v1", ANONYMOUS) as target,
    ):
        manifest = decode_manifest(image.manifest, OCI_MANIFEST)
        with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN"):
            await target.push_manifest(image.manifest, descriptor)
        for blob in (manifest.config, *manifest.layers):
            await copy_blob(blob, source, target)
        await target.push_manifest(image.manifest, descriptor)
    for name, error in ((f"app@{image.digest}", None), ("app:v1", NotFoundError)):
        async with open_source(f"{registry.host}/{name}", ANONYMOUS) as source:
            if error is None:
                assert await source.resolve() == descriptor
            else:
                with pytest.raises(error):
                    await source.resolve()
    other = f"{registry.host}/app:v1@{Digest.of(b'other')}"
    async with open_destination(other, ANONYMOUS) as target:
        with pytest.raises(ContentError, match="the image has digest"):
            await target.tag(descriptor, image.manifest)


# Logins


async def test_basic(tmp_path, basic_registry):
    image = write_layout(tmp_path / "in", "v1", FILES)
    name = f"{basic_registry.host}/app:v1"
    await copy(f"oci:{tmp_path}/in:v1", name, Access(credentials=LOGIN))
    async with open_source(name, Access(credentials=LOGIN)) as source:
        assert (await read_image(source))[0] == image.manifest
    for credentials, why in (
        (Credentials(), "needs a login"),
        (Credentials(USERNAME, "wrong"), "not allowed; is a login needed"),
    ):
        async with open_source(name, Access(credentials=credentials)) as source:
            with pytest.raises(DeniedError, match=why) as caught:
                await source.resolve()
            assert basic_registry.host in str(caught.value)
            assert "wrong" not in str(caught.value)


async def test_tokens(tmp_path):
    image = write_layout(tmp_path / "in", "v1", FILES)
    async with token_registry(tmp_path) as (registry, service):
        name = f"{registry.host}/some/app:v1"
        await copy(f"oci:{tmp_path}/in:v1", name, Access(credentials=LOGIN))
        # One token served the whole push.
        assert service.given == [["repository:some/app:pull,push"]]
        refresh = Credentials(identity_token=REFRESH_TOKEN)
        for credentials in (Credentials(), LOGIN, refresh):
            service.given.clear()
            async with open_source(name, Access(credentials=credentials)) as source:
                assert (await read_image(source))[0] == image.manifest
            assert service.given == [["repository:some/app:pull"]]
        # Mounting needs to read there and to write here.
        service.given.clear()
        other = f"{registry.host}/other:v1"
        async with (
            open_source(name, Access(credentials=refresh)) as source,
            open_destination(other, Access(credentials=refresh)) as target,
        ):
            blob = decode_manifest(image.manifest, OCI_MANIFEST)
            assert await target.mount_blob(blob.config, source) is True
        assert service.given == [["repository:other:pull,push", "repository:some/app:pull"]]


async def test_tokens_that_do_not_allow_it(tmp_path):
    write_layout(tmp_path / "in", "v1", FILES)
    async with token_registry(tmp_path) as (registry, service):
        name = f"{registry.host}/some/app:v1"
        with pytest.raises(DeniedError, match=f"{registry.host}/some/app"):
            await copy(f"oci:{tmp_path}/in:v1", name, ANONYMOUS)
        assert service.server is not None
        wrong = Access(credentials=Credentials(USERNAME, "wrong password"))
        with pytest.raises(DeniedError, match=f"{service.server.host}: token for") as caught:
            await copy(f"oci:{tmp_path}/in:v1", name, wrong)
        assert "wrong password" not in str(caught.value)


@pytest.mark.parametrize(
    ("challenge", "error", "why"),
    [
        ("Negotiate", DeniedError, "of a kind that is not known"),
        ("", DeniedError, "of a kind that is not known"),
        ("Bearer service=x", TransportError, "names no usable token service"),
        ('Bearer realm="http://[::1/"', TransportError, "names no usable token service"),
        ('Bearer realm="http://auth.example.com/"', TransportError, "plain HTTP"),
        ('Bearer realm="file:///etc/passwd"', TransportError, "not plain HTTP"),
        ('Bearer realm="/broken"', ContentError, "holds no token"),
        ('Bearer realm="/loop"', TransportError, "more than 5 redirects"),
        ('Bearer realm="/long"', ContentError, "limit"),
        ('Bearer realm="/gone"', NotFoundError, "token for"),
    ],
)
async def test_odd_challenges(challenge, error, why, autojump_clock):
    def answer(request: Request) -> Reply:
        special = {
            "/v2/": Reply(200),
            "/broken": Reply(200, b"{}"),
            "/loop": Reply(302, headers={"Location": "/loop"}),
            "/long": Reply(200, bytes(1 << 20)),
            "/gone": Reply(404),
        }
        headers = {"WWW-Authenticate": challenge} if challenge else {}
        return special.get(request.path, Reply(401, headers=headers))

    async with scripted_server(answer) as server:
        access = Access(timeout_s=5, credentials=LOGIN)
        async with open_source(f"{server.host}/app:v1", access) as source:
            with pytest.raises(error, match=why) as caught:
                await source.resolve()
    assert server.host in str(caught.value) or "example.com" in str(caught.value)
    assert not any(
        "authorization" in request.headers for request in server.requests if "v2" in request.path
    )


async def test_a_token_from_a_credential_file_is_sent_as_it_is():
    def answer(request: Request) -> Reply:
        if request.headers.get("authorization") == "Bearer given":
            return Reply(200, b"{}", {"Content-Type": OCI_MANIFEST})
        return Reply(401, headers={"WWW-Authenticate": 'Bearer realm="/token"'})

    async with scripted_server(answer) as server:
        access = Access(credentials=Credentials(registry_token="given"))
        async with open_source(f"{server.host}/app:v1", access) as source:
            assert (await source.resolve()).digest == Digest.of(b"{}")
    assert server.count("GET", "/token") == 0


@pytest.mark.parametrize(
    ("headers", "body", "error", "why"),
    [
        ({}, b"{}", None, ""),
        ({"Docker-Content-Digest": str(Digest.of(b"x"))}, b"{}", ContentError, "wanted .*found"),
        ({"Docker-Content-Digest": "nonsense"}, b"{}", ContentError, "not a digest"),
        ({"Docker-Content-Digest": str(Digest.of(b"{}", "sha512"))}, b"{}", None, ""),
        ({"Content-Type": "text/html"}, b"<html>", TransportError, "sent a web page"),
        ({"Content-Type": "application/json"}, b'{"mediaType": "x"}', None, ""),
        (
            {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
            b"{}",
            ContentError,
            "before 2016",
        ),
        ({}, bytes(5 << 20), ContentError, "limit"),
    ],
)
async def test_manifests_of_odd_servers(headers, body, error, why, autojump_clock):
    reply = Reply(200, body, {"Content-Type": OCI_MANIFEST, **headers})
    async with (
        scripted_server(lambda _: reply) as server,
        open_source(f"{server.host}/app:v1", ANONYMOUS) as source,
    ):
        if error is None:
            descriptor = await source.resolve()
            assert descriptor.size_bytes == len(body)
            assert await source.fetch_manifest(descriptor) == body
            before = len(server.requests)
            lie = Descriptor(OCI_MANIFEST, descriptor.digest, descriptor.size_bytes + 1)
            with pytest.raises(ContentError, match=server.host):
                await source.fetch_manifest(lie)
            assert len(server.requests) == before
        else:
            with pytest.raises(error, match=why):
                await source.resolve()


async def test_an_expired_token_is_replaced(tmp_path, mock_clock):
    image = write_layout(tmp_path / "in", "v1", FILES)
    async with token_registry(tmp_path) as (registry, service):
        name = f"{registry.host}/app:v1"
        await copy(f"oci:{tmp_path}/in:v1", name, Access(timeout_s=0, credentials=LOGIN))
        service.given.clear()
        async with open_source(name, Access(timeout_s=0, credentials=LOGIN)) as source:
            await source.resolve()
            assert len(service.given) == 1
            mock_clock.jump(120)
            config = decode_manifest(image.manifest, OCI_MANIFEST)
            await source.fetch_content(config.config, 1 << 20)
            assert len(service.given) == 2


async def test_tasks_that_are_refused_together_share_a_token(tmp_path):
    image = write_layout(tmp_path / "in", "v1", FILES)
    async with token_registry(tmp_path) as (registry, service):
        name = f"{registry.host}/app:v1"
        await copy(f"oci:{tmp_path}/in:v1", name, Access(credentials=LOGIN))
        service.given.clear()
        manifest = decode_manifest(image.manifest, OCI_MANIFEST)
        async with open_source(name, ANONYMOUS) as source:
            reader = await source.open_blob(manifest.layers[1])
            async with trio.open_nursery() as nursery:
                for offset in range(20):
                    nursery.start_soon(reader.fetch, offset, 10)
        assert len(service.given) == 1


async def test_credentials_from_a_file(tmp_path, basic_registry, monkeypatch):
    write_layout(tmp_path / "in", "v1", FILES)
    # skopeo writes the file that we read.
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    skopeo(
        *("login", "--tls-verify=false", "-u", USERNAME, "-p", PASSWORD, basic_registry.host),
    )
    await copy(f"oci:{tmp_path}/in:v1", f"{basic_registry.host}/app:v1", Access())


# TLS


async def test_tls_on_loopback_is_found(tmp_path, monkeypatch):
    write_layout(tmp_path / "in", "v1", FILES)
    certificate = Certificate.make(tmp_path)
    with running_registry(tmp_path / "registry", tls=certificate) as registry:
        name = f"{registry.host}/app:v1"
        with pytest.raises(TransportError, match="self-signed certificate"):
            await copy(f"oci:{tmp_path}/in:v1", name, ANONYMOUS)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        await copy(f"oci:{tmp_path}/in:v1", name, ANONYMOUS)


async def test_plain_http_where_tls_was_wanted(registry, monkeypatch):
    monkeypatch.setattr(endpoint, "is_loopback", lambda _: False)
    async with open_source(f"{registry.host}/app:v1", Access(timeout_s=2)) as source:
        with pytest.raises(TransportError, match="does not speak TLS"):
            await source.resolve()


async def test_a_registry_that_goes_away(tmp_path, registry):
    image = write_layout(tmp_path / "in", "v1", FILES)
    name = f"{registry.host}/app:v1"
    await copy(f"oci:{tmp_path}/in:v1", name)
    manifest = decode_manifest(image.manifest, OCI_MANIFEST)
    async with open_source(name, Access(timeout_s=1, credentials=Credentials())) as source:
        reader = await source.open_blob(manifest.layers[0])
        assert await reader.fetch(0, 10) == image.layers[0][:10]
        registry.stop()
        with pytest.raises(TransportError, match=f"{registry.host}: c"):
            await reader.fetch(10, 10)
