"""Mirrors: which host is asked for what, when another, and how often."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from registry.blob import HEDGE_LIMIT_BYTES
from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import ConfigurationError, ContentError, NotFoundError, TransportError
from registry.health import HostStatus
from registry.hostfiles import find_hosts, usual_folders
from registry.interfaces import Access, ImageSource
from registry.manifest import Descriptor, describe
from registry.mediatype import OCTET_STREAM
from registry.reference import parse_reference
from registry.retry import BUDGET_TOKENS, BUDGET_TOKENS_PER_S
from registry.transports import open_destination, open_source
from tests.support.fake_registry import (
    MANIFEST_TYPE,
    FakeRegistry,
    always,
    first,
    honest,
    mirror_table,
    serving,
    write_hosts,
)
from tests.support.http_server import Reply, Request

DATA = bytes(range(256)) * 40
BLOB = Descriptor(OCTET_STREAM, Digest.of(DATA), len(DATA))
MANIFEST = b'{"schemaVersion": 2, "config": {}}'
OTHER = b'{"schemaVersion": 2, "config": {"a": 1}}'
TIMEOUT_S = 12.0


def access(hosts_dirs: tuple[Path, ...] = (), timeout_s: float = TIMEOUT_S) -> Access:
    return Access(timeout_s=timeout_s, hosts_dirs=hosts_dirs)


def states(source: ImageSource) -> dict[str, HostStatus]:
    return {status.role: status for status in source.hosts()}


# Which folder


def test_where_is_looked(tmp_path, monkeypatch):
    reference = parse_reference("example.com:5000/a/b:c")

    def hosts(*folders: str) -> list[str]:
        return [host.host for host in find_hosts(reference, [tmp_path / f for f in folders])]

    assert hosts("one") == ["example.com:5000"]
    write_hosts(tmp_path / "one", "_default", 'server = "https://default.one"')
    write_hosts(tmp_path / "two", "_default", 'server = "https://default.two"')
    one, two = "one/certs.d", "two/certs.d"
    assert hosts(one, two) == ["default.one"]
    assert hosts(two, one) == ["default.two"]
    write_hosts(tmp_path / "two", "example.com:5000", '[host."https://mirror.two"]')
    assert hosts(one, two) == ["mirror.two", "example.com:5000"]
    write_hosts(tmp_path / "two", "example.com_5000_", '[host."https://better.two"]')
    assert hosts(one, two) == ["better.two", "example.com:5000"]
    write_hosts(tmp_path / "one", "example.com", '[host."https://other.port"]')
    assert hosts(one) == ["default.one"]
    write_hosts(tmp_path / "one", "example.com:5000", "[")
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/one.*not TOML"):
        hosts(one, two)
    hub = find_hosts(parse_reference("busybox"), [])
    assert [host.host for host in hub] == ["registry-1.docker.io"]
    home = usual_folders({"HOME": "/home/u"})
    assert [str(path) for path in home] == [
        "/home/u/.config/lazyfs/certs.d",
        "/etc/lazyfs/certs.d",
        "/etc/containerd/certs.d",
        "/etc/docker/certs.d",
    ]


# Which host


async def test_mirrors_come_first_and_learn_whose_image_it_is(tmp_path):
    async with (
        serving(FakeRegistry([DATA], MANIFEST)) as mirror,
        serving(FakeRegistry([DATA], MANIFEST)) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            descriptor = await source.resolve()
            assert await source.fetch_manifest(descriptor) == MANIFEST
            reader = await source.open_blob(BLOB)
            assert await reader.fetch(1, 10) == DATA[1:11]
            assert registry.content() == []
            assert [r.target for r in mirror.content()] == [
                f"/v2/a/b/manifests/c?ns={registry.host}",
                f"/v2/a/b/blobs/{BLOB.digest}?ns={registry.host}",
            ]
            assert states(source)["mirror"].requests == 2


async def test_a_mirror_without_the_right_to_say_what_a_tag_means(tmp_path):
    async with (
        serving(FakeRegistry([DATA], OTHER)) as mirror,
        serving(FakeRegistry([DATA], MANIFEST)) as registry,
    ):
        table = f'[host."http://{mirror.host}"]\ncapabilities = ["pull"]'
        hosts = write_hosts(tmp_path, registry.host, table)
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            assert (await source.resolve()).digest == Digest.of(MANIFEST)
            assert mirror.content() == []
        # By digest it may be asked, as it cannot lie then. It has another one, so it is passed on.
        name = f"{registry.host}/a/b@{Digest.of(MANIFEST)}"
        async with open_source(name, access(hosts)) as source:
            assert (await source.resolve()).digest == Digest.of(MANIFEST)
            assert len(mirror.content()) == 1


async def test_nobody_may_resolve(tmp_path):
    hosts = write_hosts(tmp_path, "a.example", 'capabilities = ["pull"]')
    async with open_source("a.example/a:b", access(hosts)) as source:
        with pytest.raises(ConfigurationError, match=r"a.example: .*'resolve'"):
            await source.resolve()


async def test_a_manifest_that_a_mirror_gives_wrong(tmp_path, caplog):
    async with (
        serving(FakeRegistry(breaks=always(Reply(200, OTHER)))) as mirror,
        serving(FakeRegistry([DATA], MANIFEST)) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        name = f"{registry.host}/a/b@{Digest.of(MANIFEST)}"
        async with open_source(name, access(hosts)) as source:
            assert await source.resolve() == describe(MANIFEST, MANIFEST_TYPE)
            assert states(source)["mirror"].state == "distrusted"
            assert "gave a wrong answer" in caplog.text
            assert mirror.host in caplog.text
            assert await source.fetch_manifest(describe(MANIFEST, MANIFEST_TYPE)) == MANIFEST
        config = describe(DATA, OCTET_STREAM)
        mirror.breaks = always(Reply(200, bytes(len(DATA))))
        async with open_source(name, access(hosts)) as source:
            assert await source.fetch_content(config, 1 << 20) == DATA
            assert states(source)["mirror"].state == "distrusted"


async def test_everybody_gives_it_wrong():
    async with (
        serving(FakeRegistry(breaks=always(Reply(200, bytes(len(DATA)))))) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        with pytest.raises(ContentError, match="wanted sha256"):
            await source.fetch_content(BLOB, 1 << 20)
        assert len(registry.content()) == 2


async def test_a_prefix_of_paths_and_headers_for_one_host_only(tmp_path):
    async with (
        serving(FakeRegistry([DATA])) as storage,
        serving(FakeRegistry([DATA], prefix="/proxy/v2")) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        url = f"http://{mirror.host}/proxy"
        headers = (
            f'[host."{url}".header]\nX-Key = "secret of the mirror"\nAuthorization = "Basic x"'
        )
        hosts = write_hosts(tmp_path, registry.host, mirror_table(url, extra=headers))
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            reader = await source.open_blob(BLOB)
            assert await reader.fetch(1, 10) == DATA[1:11]
            [request] = mirror.content()
            assert request.headers["x-key"] == "secret of the mirror"
            assert request.headers["authorization"] == "Basic x"
            assert request.target.startswith("/proxy/v2/a/b/blobs/")
            target = f"http://{storage.host}/v2/a/b/blobs/{BLOB.digest}"
            mirror.breaks = first(1, Reply(307, headers={"Location": target}))
            assert await reader.fetch(2, 10) == DATA[2:12]
            mirror.breaks = storage.breaks = always(Reply(404))
            assert await reader.fetch(3, 10) == DATA[3:13]
            for request in (*storage.content(), *registry.content()):
                assert not {"x-key", "authorization"} & set(request.headers)


async def test_the_users_password_is_for_the_registry_not_for_mirrors(tmp_path):
    def locked(request: Request, reply: Reply) -> Reply:
        if "authorization" in request.headers:
            return reply
        return Reply(401, headers={"WWW-Authenticate": 'Basic realm="give me"'})

    async with (
        serving(FakeRegistry([DATA], breaks=locked)) as mirror,
        serving(FakeRegistry([DATA], breaks=locked)) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        both = replace(access(hosts), credentials=Credentials("user", "password"))
        async with open_source(f"{registry.host}/a/b:c", both) as source:
            reader = await source.open_blob(BLOB)
            for offset in range(5):
                assert await reader.fetch(offset, 10) == DATA[offset : offset + 10]
            assert len(registry.content()) == 6
            # It is not asked again and again, as it has refused.
            assert len(mirror.content()) == 1
            assert not any("authorization" in request.headers for request in mirror.content())


@pytest.mark.parametrize("gone", ["refuses", "hangs"])
async def test_a_mirror_that_is_gone_costs_little(tmp_path, gone, autojump_clock):
    async with serving(FakeRegistry([DATA])) as registry:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        mirror = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        if gone == "refuses":
            await listeners[0].aclose()
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror}"))
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            reader = await source.open_blob(BLOB)
            began = trio.current_time()
            for offset in range(100):
                assert await reader.fetch(offset, 10) == DATA[offset : offset + 10]
            assert trio.current_time() - began <= TIMEOUT_S
            assert states(source)["mirror"].requests <= 3
        await listeners[0].aclose()


async def test_a_mirror_that_comes_back_is_used_again(tmp_path, caplog, autojump_clock):
    async with (
        serving(FakeRegistry([DATA], breaks=always(Reply(503)))) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            reader = await source.open_blob(BLOB)
            for _ in range(60):
                await reader.fetch(0, 10)
                await trio.sleep(1)
            # 0, 1, 3, 7, 15, 31 s
            assert len(mirror.content()) == 6
            assert states(source)["mirror"].state == "failing"
            assert caplog.text.count("keeps failing") == 1
            mirror.breaks = honest
            await trio.sleep(60)
            before = len(registry.content())
            for _ in range(10):
                await reader.fetch(0, 10)
            assert len(registry.content()) == before
            assert caplog.text.count("works again") == 1
            assert states(source)["mirror"].state == "ok"


async def test_pushes_go_to_one_host_that_may_be_pushed_to(tmp_path):
    async with (
        serving(FakeRegistry()) as mirror,
        serving(FakeRegistry(breaks=always(Reply(201)))) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with open_destination(f"{registry.host}/a/b:c", access(hosts)) as destination:
            await destination.tag(describe(MANIFEST, MANIFEST_TYPE), MANIFEST)
        assert mirror.content() == []
        assert [request.method for request in registry.content()] == ["PUT"]


# Twice


def slow(seconds: Callable[[int], float]) -> Callable[[Request, Reply], Reply]:
    """Answer the request with that number (from 1) after so long."""
    count = 0

    def answer(request: Request, reply: Reply) -> Reply:
        nonlocal count
        count += 1
        return replace(reply, wait_s=seconds(count))

    return answer


async def test_a_slow_answer_is_asked_for_again_elsewhere(tmp_path, autojump_clock):
    async with (
        serving(FakeRegistry([DATA], breaks=slow(lambda n: 0.1 if n <= 20 else 5.0))) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            reader = await source.open_blob(BLOB)
            for offset in range(20):
                await reader.fetch(offset, 10)
            assert registry.content() == []
            began = trio.current_time()
            assert await reader.fetch(50, 10) == DATA[50:60]
            # Learnt from the first twenty: twice their time.
            assert trio.current_time() - began == pytest.approx(0.2, abs=0.05)
            assert len(registry.content()) == 1
            assert states(source)["registry"].hedges == 1


async def test_without_another_host_the_same_is_asked_again(autojump_clock):
    breaks = slow(lambda n: 11.0 if n == 3 else 0.0)
    async with (
        serving(FakeRegistry([DATA], breaks=breaks)) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        reader = await source.open_blob(BLOB)
        began = trio.current_time()
        for offset in range(10):
            assert await reader.fetch(offset, 10) == DATA[offset : offset + 10]
        assert trio.current_time() - began < TIMEOUT_S / 2
        assert len(registry.content()) == 11
        assert states(source)["registry"].hedges == 1
        assert states(source)["registry"].failures == 0


@pytest.mark.parametrize(("slow_s", "expected_s"), [(0.5, 0.5), (5.0, 0.8)])
async def test_an_answer_behind_others_is_given_time(
    slow_s: float, expected_s: float, autojump_clock: trio.testing.MockClock
):
    """Behind others of the same host, an answer may take four times as long as by itself."""
    usual = slow(lambda n: {22: slow_s}.get(n, 0.1 if n <= 20 else 0.0))

    def answer(request: Request, reply: Reply) -> Reply:
        reply = usual(request, reply)
        return replace(reply, drip_s=0.05) if request.headers["range"] == "bytes=0-199" else reply

    async with (
        serving(FakeRegistry([DATA], breaks=answer)) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
        trio.open_nursery() as nursery,
    ):
        reader = await source.open_blob(BLOB)
        for offset in range(20):
            await reader.fetch(offset, 10)
        nursery.start_soon(reader.fetch, 0, 200)
        await trio.sleep(1)
        began = trio.current_time()
        assert await reader.fetch(50, 10) == DATA[50:60]
        assert trio.current_time() - began == pytest.approx(expected_s, abs=0.1)
        assert states(source)["registry"].hedges == (1 if slow_s > expected_s else 0)
        nursery.cancel_scope.cancel()


async def test_second_requests_are_few(autojump_clock):
    """A server that is slow all the time is not made slower."""
    breaks = slow(lambda n: 0.01 if n <= 20 else 1.0)
    async with (
        serving(FakeRegistry([DATA], breaks=breaks)) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        reader = await source.open_blob(BLOB)
        for offset in range(400):
            await reader.fetch(offset, 10)
        assert 1 <= states(source)["registry"].hedges <= 25
        assert len(registry.content()) <= 425


async def test_a_long_range_is_asked_for_once(autojump_clock):
    data = bytes(HEDGE_LIMIT_BYTES + 10)
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    async with (
        serving(FakeRegistry([data], breaks=slow(lambda n: 4.0))) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        reader = await source.open_blob(blob)
        assert len(await reader.fetch(1, HEDGE_LIMIT_BYTES + 1)) == HEDGE_LIMIT_BYTES + 1
        assert len(registry.content()) == 1


async def test_both_fail(tmp_path, autojump_clock):
    missing = always(Reply(404, wait_s=1.0))
    async with (
        serving(FakeRegistry(breaks=always(Reply(503, wait_s=5.0)))) as mirror,
        serving(FakeRegistry(breaks=missing)) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with open_source(f"{registry.host}/a/b:c", access(hosts)) as source:
            reader = await source.open_blob(BLOB)
            with pytest.raises(NotFoundError):
                await reader.fetch(0, 10)


# How often


async def ask_all(source: ImageSource, count: int) -> int:
    """Fetch ranges, 16 at a time; how many came."""
    reader = await source.open_blob(BLOB)
    room = trio.CapacityLimiter(16)
    came = 0

    async def one(offset: int) -> None:
        nonlocal came
        async with room:
            try:
                assert await reader.fetch(offset, 10) == DATA[offset : offset + 10]
                came += 1
            except TransportError:
                pass

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number % 10_000)
    return came


async def test_a_registry_that_is_gone_is_not_hammered(autojump_clock):
    async with (
        serving(FakeRegistry([DATA])) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        assert await ask_all(source, 1) == 1
        registry.breaks = always(Reply(raw=b""))
        began = trio.current_time()
        assert await ask_all(source, 200) == 0
        took_s = trio.current_time() - began
        retries = len(registry.content()) - 201
        assert states(source)["registry"].retries == pytest.approx(retries, abs=25)
        # Each was asked for once; again at a bounded rate, however many wait.
        assert retries <= BUDGET_TOKENS + BUDGET_TOKENS_PER_S * took_s + 25


async def test_every_third_request_fails_and_everything_comes(autojump_clock):
    count = 0

    def third(request: Request, reply: Reply) -> Reply:
        nonlocal count
        count += 1
        return Reply(503) if count % 3 == 0 else reply

    async with (
        serving(FakeRegistry([DATA], breaks=third)) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        assert await ask_all(source, 300) == 300
        assert len(registry.content()) <= 300 * 1.6


async def test_a_registry_that_comes_back_in_time_is_waited_for(autojump_clock):
    async with (
        serving(FakeRegistry([DATA])) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        assert await ask_all(source, 1) == 1
        registry.breaks = always(Reply(503))
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert await ask_all(source, 10) == 10

            nursery.start_soon(read)
            await trio.sleep(TIMEOUT_S / 2)
            registry.breaks = honest


async def test_a_date_to_come_back(autojump_clock):
    headers = {
        "Date": "Sun, 06 Nov 1994 08:49:37 GMT",
        "Retry-After": "Sun, 06 Nov 1994 08:49:41 GMT",
    }
    async with (
        serving(FakeRegistry([DATA], breaks=first(1, Reply(503, headers=headers)))) as registry,
        open_source(f"{registry.host}/a/b:c", access()) as source,
    ):
        reader = await source.open_blob(BLOB)
        began = trio.current_time()
        assert await reader.fetch(0, 10) == DATA[:10]
        assert trio.current_time() - began == pytest.approx(4, abs=0.5)
