"""TLS, proxies and names: what is refused, what a configuration allows, and for whom only."""

import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from registry import names as names_module
from registry.digest import Digest
from registry.errors import ConfigurationError, ProtocolError, TransportError
from registry.interfaces import Access
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.transports import open_source
from tests.support.certificates import Authority
from tests.support.fake_registry import FakeRegistry, always, serving, write_hosts
from tests.support.http_server import Reply, Request

DATA = bytes(range(256)) * 4
BLOB = Descriptor(OCTET_STREAM, Digest.of(DATA), len(DATA))
TIMEOUT_S = 9.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def read(host: str, hosts_dirs: tuple[Path, ...] = ()) -> bytes:
    access = Access(timeout_s=TIMEOUT_S, hosts_dirs=hosts_dirs)
    async with open_source(f"{host}/a/b:c", access) as source:
        return await (await source.open_blob(BLOB)).fetch(10, 100)


def tls_hosts(folder: Path, host: str, extra: str = "") -> tuple[Path, ...]:
    return write_hosts(folder, host, f'server = "https://{host}"\n{extra}')


@pytest.mark.parametrize(
    ("names", "days", "trusted", "why"),
    [
        ("IP:127.0.0.1", -1, True, "certificate has expired"),
        ("DNS:elsewhere.example", 10, True, "IP address mismatch"),
        ("IP:127.0.0.1", 10, False, "unable to get local issuer|self-signed"),
    ],
    ids=["expired", "for another host", "unknown authority"],
)
async def test_certificates_that_are_refused(
    authority, tmp_path, names, days, trusted, why, autojump_clock
):
    issued = authority.issue("refused", names, days)
    async with serving(FakeRegistry([DATA]), issued.server_context()) as registry:
        ca = f'ca = "{authority.certificate}"' if trusted else ""
        with pytest.raises(ProtocolError, match=why) as caught:
            await read(registry.host, tls_hosts(tmp_path, registry.host, ca))
        assert registry.host in str(caught.value)
        assert registry.server is not None
        assert registry.server.requests == []  # nothing was told to it


async def test_no_way_down_to_plain_http(authority, tmp_path, autojump_clock):
    async with serving(FakeRegistry([DATA])) as registry:
        with pytest.raises(TransportError, match=r"does not speak TLS|closed"):
            await read(registry.host, tls_hosts(tmp_path, registry.host))
        assert registry.server is not None
        assert registry.server.requests == []
    # Nor when it is TLS that breaks, on a host that may speak plain HTTP: this machine.
    issued = authority.issue("expired", days=-1)
    async with serving(FakeRegistry([DATA]), issued.server_context()) as registry:
        with pytest.raises(ProtocolError, match="certificate is refused"):
            await read(registry.host)
        assert registry.server is not None
        assert registry.server.requests == []


async def test_an_authority_of_ones_own(authority, tmp_path):
    issued = authority.issue("good")
    async with serving(FakeRegistry([DATA]), issued.server_context()) as registry:
        hosts = tls_hosts(tmp_path, registry.host, f'ca = "{authority.certificate}"')
        assert await read(registry.host, hosts) == DATA[10:110]
        # The way of Docker: a folder of certificates.
        folder = tmp_path / "docker" / registry.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
        assert await read(registry.host, (tmp_path / "docker",)) == DATA[10:110]


async def test_skip_verify_is_for_that_host_only(authority, tmp_path, caplog, autojump_clock):
    expired = authority.issue("expired", days=-1).server_context()
    async with (
        serving(FakeRegistry([DATA]), expired) as storage,
        serving(FakeRegistry([DATA]), expired) as registry,
    ):
        hosts = tls_hosts(tmp_path, registry.host, "skip_verify = true")
        assert await read(registry.host, hosts) == DATA[10:110]
        assert f"{registry.host}: its certificate is not checked" in caplog.text
        target = f"https://{storage.host}/v2/a/b/blobs/{BLOB.digest}"
        registry.breaks = always(Reply(307, headers={"Location": target}))
        with pytest.raises(ProtocolError, match=f"{storage.host}.*certificate is refused"):
            await read(registry.host, hosts)


async def test_a_client_certificate_is_for_that_host_only(authority, tmp_path, autojump_clock):
    issued, client = authority.issue("server"), authority.issue("client")
    demanding = issued.server_context(clients=authority.certificate)
    async with (
        serving(FakeRegistry([DATA]), demanding) as storage,
        serving(FakeRegistry([DATA]), demanding) as registry,
    ):
        ca = f'ca = "{authority.certificate}"\n'
        with pytest.raises(TransportError):
            await read(registry.host, tls_hosts(tmp_path, registry.host, ca))
        both = ca + f'client = [["{client.certificate}", "{client.key}"]]'
        hosts = tls_hosts(tmp_path, registry.host, both)
        assert await read(registry.host, hosts) == DATA[10:110]
        one = tmp_path / "one.pem"
        one.write_bytes(client.certificate.read_bytes() + client.key.read_bytes())
        hosts = tls_hosts(tmp_path, registry.host, ca + f'client = "{one}"')
        assert await read(registry.host, hosts) == DATA[10:110]
        # The authority is trusted where the host sends us, but it gets no certificate of ours.
        target = f"https://{storage.host}/v2/a/b/blobs/{BLOB.digest}"
        registry.breaks = always(Reply(307, headers={"Location": target}))
        with pytest.raises(TransportError, match=storage.host):
            await read(registry.host, hosts)
        assert storage.content() == []


@pytest.mark.parametrize("what", ["ca", "client"])
@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_files_that_do_not_work_are_named(tmp_path, what, content):
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    hosts = write_hosts(tmp_path, "registry.invalid", f'{what} = "{path}"')
    with pytest.raises(ConfigurationError, match=f"registry.invalid: .*{path}"):
        await read("registry.invalid", hosts)


async def test_a_key_with_a_passphrase_asks_nobody(authority, tmp_path):
    client = authority.issue("locked")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", client.key, "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    pair = f'client = [["{client.certificate}", "{locked}"]]'
    hosts = write_hosts(tmp_path, "registry.invalid", pair)
    with pytest.raises(ConfigurationError, match="client certificate"):
        await read("registry.invalid", hosts)


async def test_redirects_from_tls_to_plain_http_are_refused(authority, tmp_path, autojump_clock):
    issued = authority.issue("server")
    async with (
        serving(FakeRegistry([DATA])) as storage,
        serving(FakeRegistry([DATA]), issued.server_context()) as registry,
    ):
        registry.breaks = always(Reply(307, headers={"Location": f"http://{storage.host}/x"}))
        hosts = tls_hosts(tmp_path, registry.host, f'ca = "{authority.certificate}"')
        with pytest.raises(ProtocolError, match="from HTTPS to HTTP"):
            await read(registry.host, hosts)
        assert storage.server is not None
        assert storage.server.requests == []


# Names


class Names(trio.abc.HostnameResolver):
    """Knows some names, hangs on others, and fails for the rest."""

    def __init__(self, known: dict[str, int], hanging: str = "") -> None:
        self.known = known
        self.hanging = hanging
        self.asked = 0

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        self.asked += 1
        name = host.decode() if isinstance(host, bytes) else host
        if name == self.hanging:
            await trio.sleep_forever()
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        address = ("127.0.0.1", self.known[name])
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_a_name_that_nobody_knows_fails_soon(autojump_clock):
    names = Names({})
    trio.socket.set_custom_hostname_resolver(names)
    began = trio.current_time()
    with pytest.raises(
        TransportError, match=r"no-such.example: cannot connect: its name cannot be looked up: Name"
    ):
        await read("no-such.example")
    assert trio.current_time() - began < TIMEOUT_S / 2
    assert 2 <= names.asked <= 5


async def test_a_name_that_comes_back_is_waited_for(authority, tmp_path, autojump_clock):
    issued = authority.issue("named", "DNS:registry.example")
    async with serving(FakeRegistry([DATA]), issued.server_context()) as registry:
        port = int(registry.host.rpartition(":")[2])
        names = Names({"registry.example": port})
        trio.socket.set_custom_hostname_resolver(names)
        hosts = write_hosts(tmp_path, "registry.example", f'ca = "{authority.certificate}"')
        access = Access(timeout_s=TIMEOUT_S, hosts_dirs=hosts)
        async with open_source("registry.example/a/b:c", access) as source:
            reader = await source.open_blob(BLOB)
            registry.breaks = always(Reply(200, DATA, cut=True))
            assert await reader.fetch(0, len(DATA)) == DATA
            known, names.known = names.known, {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect, reader, 3)
                await trio.sleep(TIMEOUT_S / 2)
                registry.breaks = lambda _, reply: reply
                names.known = known
        assert names.asked > 3


async def _expect(reader, offset: int) -> None:
    assert await reader.fetch(offset, 5) == DATA[offset : offset + 5]


async def test_looking_up_a_name_ends(autojump_clock):
    trio.socket.set_custom_hostname_resolver(Names({}, hanging="slow.example"))
    began = trio.current_time()
    with pytest.raises(
        TransportError, match=r"slow.example: no (connection|complete answer) within"
    ):
        await read("slow.example")
    assert trio.current_time() - began <= TIMEOUT_S + 1


# Proxies


async def _tunnel(proxy_log: list[str], port: int, stream: trio.SocketStream) -> None:
    """A proxy that knows CONNECT, and one place to go to."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    proxy_log.append(head.decode())
    if "connect denied" in head.decode().lower() or "Proxy-Authorization" not in head.decode():
        await stream.send_all(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        return
    await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
    async with await trio.open_tcp_stream("127.0.0.1", port) as upstream, trio.open_nursery() as n:

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            try:
                async for piece in source:
                    await sink.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            n.cancel_scope.cancel()

        n.start_soon(pump, stream, upstream)
        n.start_soon(pump, upstream, stream)


async def test_https_goes_through_a_proxy(authority, tmp_path, monkeypatch, autojump_clock):
    issued = authority.issue("proxied", "DNS:registry.example")
    log: list[str] = []
    async with (
        serving(FakeRegistry([DATA]), issued.server_context()) as registry,
        trio.open_nursery() as nursery,
    ):
        port = int(registry.host.rpartition(":")[2])
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                await _tunnel(log, port, stream)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        hosts = write_hosts(tmp_path, "registry.example", f'ca = "{authority.certificate}"')
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:proxypassword@{proxy}")
        assert await read("registry.example", hosts) == DATA[10:110]
        assert log[0].startswith("CONNECT registry.example:443 HTTP/1.1")
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        with pytest.raises(TransportError, match=r"registry.example: the proxy refuses: 407"):
            await read("registry.example", hosts)
        monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,.example")
        trio.socket.set_custom_hostname_resolver(Names({"registry.example": port}))
        asked = len(log)
        assert await read("registry.example", hosts) == DATA[10:110]
        assert len(log) == asked
        nursery.cancel_scope.cancel()


async def test_a_proxy_that_makes_no_sense(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "gopher://user:proxypassword@proxy")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY") as caught:
        await read("registry.invalid")
    assert "proxypassword" not in str(caught.value)


async def test_a_kept_connection_that_the_server_has_closed_costs_nothing(autojump_clock):
    def hang_up(request: Request, reply: Reply) -> Reply:
        return replace(reply, cut=True)

    async with serving(FakeRegistry([DATA], breaks=hang_up)) as registry:
        access = Access(timeout_s=TIMEOUT_S, hosts_dirs=())
        async with open_source(f"{registry.host}/a/b:c", access) as source:
            reader = await source.open_blob(BLOB)
            began = trio.current_time()
            for offset in range(10):
                assert await reader.fetch(offset, 5) == DATA[offset : offset + 5]
            assert trio.current_time() == began
            assert source.hosts()[0].failures == 0
            assert len(registry.ranges()) == 10


async def test_names_are_remembered_for_when_nobody_answers(monkeypatch, mock_clock):
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 1))]]
    asked: list[object] = []

    def look_up(host, port, *rest):
        asked.append(host)
        if not answers:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return answers[-1]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolver = names_module.Names()
    for _ in range(3):
        assert await resolver.getaddrinfo(b"a.example", 1) == answers[-1]
    assert len(asked) == 1
    mock_clock.jump(names_module.FRESH_S)
    answers.append([(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.2", 1))])
    last = await resolver.getaddrinfo(b"a.example", 1)
    assert last == answers[-1]
    answers.clear()
    mock_clock.jump(names_module.FRESH_S)
    assert await resolver.getaddrinfo(b"a.example", 1) == last
    with pytest.raises(socket.gaierror):
        await resolver.getaddrinfo(b"b.example", 1)


async def test_a_failed_connection_casts_doubt_on_addresses(monkeypatch, mock_clock):
    """The host may have moved: its name is looked up again, but not for each failure."""
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]
    asked: list[object] = []

    def look_up(host, port, *rest):
        asked.append(host)
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolver = names_module.Names()
    trio.socket.set_custom_hostname_resolver(resolver)
    for rounds in (1, 2, 3):
        for _ in range(3):
            assert await resolver.getaddrinfo(b"a.example", 1) == answer
            names_module.doubt_names()
            assert len(asked) == rounds
        mock_clock.jump(names_module.DOUBTED_S)
        names_module.doubt_names()


async def test_a_name_server_that_hangs_leaves_threads_for_others(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *question: gate.wait(60))
    try:
        resolver = names_module.Names()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(resolver.getaddrinfo, b"%d.example" % number, 1)
            await trio.testing.wait_all_tasks_blocked()
            limiter = trio.to_thread.current_default_thread_limiter()
            assert limiter.borrowed_tokens == 0
            assert await trio.to_thread.run_sync(int, "7") == 7
            nursery.cancel_scope.cancel()
    finally:
        gate.set()


async def test_a_resolver_of_the_program_is_kept():
    mine = Names({})
    trio.socket.set_custom_hostname_resolver(mine)
    async with open_source("registry.example/a:b", Access(hosts_dirs=())):
        assert trio.socket.set_custom_hostname_resolver(None) is mine
