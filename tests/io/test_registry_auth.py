"""Logins that expire, are withdrawn, change on the disk, or are refused; and who learns what."""

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from registry import keychain
from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import DeniedError, RegistryError, TransportError
from registry.interfaces import Access, BlobReader
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.transports import open_source
from tests.support.fake_login import PASSWORD, REFRESH_TOKEN, SECRETS, USER, FakeLogin, basic
from tests.support.fake_registry import FakeRegistry, always, mirror_table, serving, write_hosts
from tests.support.http_server import Reply, Request, scripted_server

DATA = bytes(range(256)) * 40
BLOB = Descriptor(OCTET_STREAM, Digest.of(DATA), len(DATA))
LOGIN = Credentials(USER, PASSWORD)
TIMEOUT_S = 12.0


@pytest.fixture(autouse=True)
def secrets_stay_secret(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever these tests do, no log line of any level holds a secret."""
    caplog.set_level(logging.DEBUG)
    yield
    said = "\n".join(
        record.getMessage() + str(record.exc_info or "") for record in caplog.get_records("call")
    )
    assert said, "nothing was logged, so nothing was checked"
    for secret in (*SECRETS, basic(USER, PASSWORD).removeprefix("Basic ")):
        assert secret not in said


@contextlib.asynccontextmanager
async def opened(
    login: FakeLogin, credentials: Credentials | None = LOGIN
) -> AsyncIterator[tuple[FakeRegistry, BlobReader]]:
    registry = FakeRegistry([DATA], breaks=login.check)

    def answer(request: Request) -> Reply:
        return login.give(request) if request.path == "/token" else registry.answer(request)

    async with scripted_server(answer) as server:
        registry.server = server
        access = Access(timeout_s=TIMEOUT_S, credentials=credentials, hosts_dirs=())
        async with open_source(f"{server.host}/a/b:c", access) as source:
            logging.getLogger("registry").debug("status: %s", source.hosts())
            yield registry, await source.open_blob(BLOB)
            logging.getLogger("registry").debug("status: %s", source.hosts())


async def read(reader: BlobReader, offset: int = 0) -> None:
    assert await reader.fetch(offset, 10) == DATA[offset : offset + 10]


async def read_many(reader: BlobReader, count: int = 30) -> None:
    async with trio.open_nursery() as nursery:
        for offset in range(count):
            nursery.start_soon(read, reader, offset)


async def test_a_token_is_replaced_before_it_expires(mock_clock):
    login = FakeLogin(lifetime_s=100)
    async with opened(login) as (registry, reader):
        await read(reader)
        for _ in range(20):
            mock_clock.jump(50)
            await read(reader)
        # Only the very first request was refused.
        assert len(registry.ranges()) == 22
        assert len(login.given) == 11


async def test_many_readers_replace_a_token_once(mock_clock):
    login = FakeLogin(lifetime_s=100)
    async with opened(login) as (registry, reader):
        await read(reader)
        for jump_s in (80, 1000):
            mock_clock.jump(jump_s)
            before = len(login.given)
            await read_many(reader)
            assert len(login.given) == before + 1
        assert len(registry.ranges()) == 62


async def test_many_readers_whose_token_is_withdrawn_get_one_together(autojump_clock):
    login = FakeLogin()
    async with opened(login) as (_, reader):
        await read_many(reader)
        assert len(login.given) == 1
        for rounds in range(2, 5):
            login.withdraw()
            await read_many(reader)
            assert len(login.given) == rounds


async def test_a_token_that_is_withdrawn_in_the_middle_of_a_long_read(autojump_clock):
    login = FakeLogin()
    async with opened(login) as (registry, reader):
        honest = registry.breaks
        cut = iter(range(10))

        def cut_and_withdraw(request: Request, reply: Reply) -> Reply:
            reply = honest(request, reply)
            if reply.status != 206 or next(cut) > 3:
                return reply
            login.withdraw()
            half = len(reply.body) // 2
            return Reply(206, reply.body[:half], reply.headers, length=len(reply.body), cut=True)

        registry.breaks = cut_and_withdraw
        assert await reader.fetch(1, 5000) == DATA[1:5001]
        assert len(login.given) == 5


async def test_a_token_service_that_is_gone_while_the_token_is_good(mock_clock):
    login = FakeLogin(lifetime_s=100)
    async with opened(login) as (_, reader):
        await read(reader)
        login.breaks_tokens = Reply(503)
        mock_clock.jump(80)
        await read(reader)
        login.breaks_tokens = None
        await read(reader)
        assert len(login.given) == 2


async def test_a_token_service_that_fails_now_and_then(autojump_clock):
    login = FakeLogin()
    async with opened(login) as (_, reader):
        await read(reader)
        login.withdraw()
        login.breaks_tokens = Reply(503)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, reader)
            await trio.sleep(TIMEOUT_S / 3)
            login.breaks_tokens = None


async def test_a_password_that_is_wrong_is_not_tried_for_every_read(autojump_clock):
    for tokens in (True, False):
        login = FakeLogin(tokens=tokens, password="another")
        async with opened(login) as (registry, reader):
            for _ in range(50):
                with pytest.raises(DeniedError) as caught:
                    await read(reader)
                assert registry.host in str(caught.value)
            assert len(login.asked) <= 2
            logins = [r for r in registry.content() if "authorization" in r.headers]
            assert len(logins) <= 2
            # It may be right later.
            login.password = PASSWORD
            await trio.sleep(10)
            await read(reader)


async def test_a_refresh_token(mock_clock):
    login = FakeLogin(lifetime_s=100)
    async with opened(login, Credentials(identity_token=REFRESH_TOKEN)) as (_, reader):
        await read(reader)
        mock_clock.jump(100)
        await read(reader)
        assert [request.method for request in login.asked] == ["POST", "POST"]


async def test_a_registry_that_asks_twice_for_the_same_password():
    login = FakeLogin(tokens=False)
    async with opened(login) as (registry, reader):
        await read(reader)
        honest, refusals = registry.breaks, iter([True])
        registry.breaks = lambda q, r: login.challenge() if next(refusals, False) else honest(q, r)
        await read(reader)


# Files and helpers

HELPER = """#!/bin/sh
echo asked >> "$0.log"
read -r server
cat "$0.answer"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".docker").mkdir()
    return tmp_path


def write_config(home: Path, **passwords: str) -> None:
    auths = {
        host.replace("_", ":").replace("X", "."): {
            "auth": basic(USER, password).removeprefix("Basic ")
        }
        for host, password in passwords.items()
    }
    (home / ".docker/config.json").write_text(json.dumps({"auths": auths}))


def key(host: str) -> str:
    return host.replace(":", "_").replace(".", "X")


async def test_a_password_that_changes_on_the_disk(home, mock_clock):
    for tokens in (True, False):
        login = FakeLogin(tokens=tokens)
        async with opened(login, None) as (registry, reader):
            write_config(home, **{key(registry.host): PASSWORD})
            await read(reader)
            # The new one is found once the old one is refused, in the same read.
            login.password = "s3cret-password-2"
            login.withdraw()
            write_config(home, **{key(registry.host): "s3cret-password-2"})
            await read_many(reader)


async def test_a_login_that_comes_after_the_first_refusal(home, mock_clock):
    login = FakeLogin()
    async with opened(login, None) as (registry, reader):
        with pytest.raises(DeniedError):
            await read(reader)
        write_config(home, **{key(registry.host): PASSWORD})
        mock_clock.jump(10)
        await read(reader)


async def test_files_are_read_again_only_when_they_have_changed(home, monkeypatch, mock_clock):
    reads: list[object] = []
    real = keychain.look_up

    async def counted(*words):
        reads.append(words)
        return await real(*words)

    monkeypatch.setattr(keychain, "look_up", counted)
    login = FakeLogin(lifetime_s=100)
    async with opened(login, None) as (registry, reader):
        write_config(home, **{key(registry.host): PASSWORD})
        for _ in range(10):
            await read(reader)
            mock_clock.jump(90)
        assert len(login.given) == 10
        assert len(reads) == 1
        write_config(home, **{key(registry.host): PASSWORD, "other_1": "s3cret-password-3"})
        await read(reader)
        assert len(reads) == 2


async def test_a_helper_is_asked_again_when_its_answer_is_refused(home, mock_clock):
    helper = home / "docker-credential-fake"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    answer, log = Path(f"{helper}.answer"), Path(f"{helper}.log")
    (home / ".docker/config.json").write_text('{"credsStore": "fake"}')
    login = FakeLogin(tokens=False)
    answer.write_text(json.dumps({"Username": USER, "Secret": PASSWORD}))
    async with opened(login, None) as (_, reader):
        await read_many(reader)
        assert log.read_text().count("asked") == 1
        login.password = "s3cret-password-2"
        answer.write_text(json.dumps({"Username": USER, "Secret": login.password}))
        await read_many(reader)
        assert log.read_text().count("asked") == 2


# Who learns what


async def test_two_hosts_never_learn_each_others_passwords(home, tmp_path):
    logins = [FakeLogin(tokens=False, password=f"s3cret-password-{n}") for n in range(2)]
    async with (
        serving(FakeRegistry([DATA], breaks=logins[0].check)) as mirror,
        serving(FakeRegistry([DATA], breaks=logins[1].check)) as registry,
    ):
        write_config(
            home, **{key(mirror.host): logins[0].password, key(registry.host): logins[1].password}
        )
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        access = Access(timeout_s=TIMEOUT_S, hosts_dirs=hosts)
        async with open_source(f"{registry.host}/a/b:c", access) as source:
            reader = await source.open_blob(BLOB)
            await read(reader)
            assert registry.content() == []
            honest, mirror.breaks = mirror.breaks, always(Reply(503))
            await read(reader)
            mirror.breaks = honest
            await read(reader)
        for host, password in ((mirror, logins[0].password), (registry, logins[1].password)):
            sent = {r.headers.get("authorization") for r in host.content()}
            assert sent - {None} == {basic(USER, password)}


async def test_signed_addresses_that_expire_are_asked_for_again(autojump_clock):
    good: set[str] = set()
    signed = 0

    def storage(request: Request) -> Reply:
        if request.target.rpartition("=")[2] not in good:
            return Reply(403, b"<Error>Request has expired</Error>")
        return FakeRegistry([DATA]).answer(request)

    async with scripted_server(storage) as elsewhere:
        login = FakeLogin()
        async with opened(login) as (registry, reader):
            honest = registry.breaks

            def sign(request: Request, reply: Reply) -> Reply:
                nonlocal signed
                if honest(request, reply).status == 401:
                    return login.challenge()
                signed += 1
                good.add(f"s3cret-signature-{signed}")
                query = f"X-Signature=s3cret-signature-{signed}"
                target = f"http://{elsewhere.host}{request.path}?{query}"
                return Reply(307, headers={"Location": target})

            registry.breaks = sign
            await read_many(reader)
            before = signed
            await read_many(reader)
            assert signed == before
            for rounds in range(1, 4):
                good.clear()
                await read(reader)
                assert signed == before + rounds
            good.clear()
            await read_many(reader)
            assert not any("authorization" in r.headers for r in elsewhere.requests)
            # What is said of a failure there names the host, not the address.
            good.clear()
            target = f"http://{elsewhere.host}/?X-Signature=s3cret-signature"
            registry.breaks = always(Reply(307, headers={"Location": target}))
            with pytest.raises(DeniedError, match=elsewhere.host) as caught:
                await read(reader)
            assert "s3cret" not in str(caught.value)


async def test_headers_of_a_configuration_are_secret(tmp_path):
    async with serving(FakeRegistry([DATA], breaks=always(Reply(403)))) as registry:
        table = '[header]\nX-Key = "s3cret-header"'
        access = Access(hosts_dirs=write_hosts(tmp_path, registry.host, table))
        async with open_source(f"{registry.host}/a/b:c", access) as source:
            with pytest.raises(DeniedError) as caught:
                await read(await source.open_blob(BLOB))
            assert "s3cret" not in str(caught.value) + repr(source.hosts())
            assert registry.content()[0].headers["x-key"] == "s3cret-header"


async def test_errors_hold_no_secrets(autojump_clock):
    for breaks in (Reply(500), Reply(401), Reply(200, b"{}"), Reply(raw=b""), Reply(307)):
        for credentials in (LOGIN, Credentials(identity_token=REFRESH_TOKEN)):
            login = FakeLogin(breaks_tokens=breaks)
            async with opened(login, credentials) as (_, reader):
                with pytest.raises((RegistryError, TransportError)) as caught:
                    await read(reader)
                error: BaseException | None = caught.value
                while error is not None:
                    assert "s3cret" not in str(error) + repr(error)
                    error = error.__cause__ or error.__context__


async def test_a_file_of_logins_that_is_torn_is_not_held_against_the_registry(
    tmp_path, monkeypatch
):
    file = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    file.write_text('{"auths": {"127.0.')
    login = FakeLogin()
    registry = FakeRegistry([DATA], breaks=login.check)

    def answer(request: Request) -> Reply:
        return login.give(request) if request.path == "/token" else registry.answer(request)

    async with scripted_server(answer) as server:
        registry.server = server
        access = Access(timeout_s=TIMEOUT_S, hosts_dirs=())
        async with open_source(f"{server.host}/a/b:c", access) as source:
            reader = await source.open_blob(BLOB)
            with pytest.raises(RegistryError, match=f"{file}.*not JSON"):
                await read(reader)
            assert source.hosts()[0].wrong_answers == 0
            auth = basic(USER, PASSWORD).removeprefix("Basic ")
            file.write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
            await read(reader)
