"""The first question to a registry: at once, without a word before it, perhaps ahead of time."""

import pytest
import trio

from registry.credentials import Credentials
from registry.digest import Digest
from registry.errors import RegistryError, ResponseError
from registry.interfaces import Access
from registry.manifest import Manifest, describe
from registry.mediatype import OCI_EMPTY, OCI_MANIFEST
from registry.source import RegistrySource
from registry.transports import open_source
from tests.support.http_server import Reply, Request, ScriptedServer, scripted_server

RAW = Manifest(config=describe(b"{}", OCI_EMPTY), layers=()).encode()
MANIFEST = Reply(200, RAW, {"Content-Type": OCI_MANIFEST})
TARGET = "/v2/a/b/manifests/c"
ACCESS = Access(timeout_s=5)


def asked(server: ScriptedServer) -> list[tuple[str, bool]]:
    """The paths, and whether a login came along."""
    return [(request.path, "authorization" in request.headers) for request in server.requests]


async def test_a_server_on_this_machine_is_asked_for_the_manifest_at_once():
    async with (
        scripted_server(lambda _: MANIFEST) as server,
        open_source(f"{server.host}/a/b:c", ACCESS) as source,
    ):
        assert (await source.resolve()).digest == Digest.of(RAW)
        assert asked(server) == [(TARGET, False)]
        assert server.connections == 1


async def test_a_login_is_sent_to_who_asks_for_it():
    def answer(request: Request) -> Reply:
        if "authorization" in request.headers:
            return MANIFEST
        return Reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    access = Access(timeout_s=5, credentials=Credentials("u", "p"))
    async with (
        scripted_server(answer) as server,
        open_source(f"{server.host}/a/b:c", access) as source,
    ):
        await source.resolve()
        assert asked(server)[0] == (TARGET, False)
        assert asked(server)[-1] == (TARGET, True)


async def test_what_is_not_there_is_told_as_ever():
    def answer(request: Request) -> Reply:
        return Reply(200) if request.path == "/v2/" else Reply(404)

    async with (
        scripted_server(answer) as server,
        open_source(f"{server.host}/a/b:c", ACCESS) as source,
    ):
        with pytest.raises(ResponseError) as caught:
            await source.resolve()
        assert caught.value.status == 404


@pytest.mark.parametrize("ending", ["cut", "stall"])
async def test_an_answer_that_breaks_off_is_asked_for_again(ending: str):
    replies = [Reply(200, RAW[:9], MANIFEST.headers, length=len(RAW), cut=True), MANIFEST]
    if ending == "stall":
        replies[0] = Reply(200, RAW[:9], MANIFEST.headers, length=len(RAW), stall=True)
    async with (
        scripted_server(lambda _: replies.pop(0)) as server,
        open_source(f"{server.host}/a/b:c", Access(timeout_s=8)) as source,
    ):
        assert (await source.resolve()).digest == Digest.of(RAW)
        assert [path for path, _ in asked(server)] == [TARGET] * 2


async def test_an_answer_that_was_asked_for_ahead_counts():
    async with (
        scripted_server(lambda _: MANIFEST) as server,
        open_source(f"{server.host}/a/b:c", ACCESS) as source,
        trio.open_nursery() as nursery,
    ):
        assert isinstance(source, RegistrySource)
        source.resolve_ahead(nursery)
        assert (await source.resolve()).digest == Digest.of(RAW)
        assert len(server.requests) == 1
        await source.resolve()  # what was asked for is used once
        assert len(server.requests) == 2


async def test_a_failure_ahead_is_for_who_wants_to_know():
    async with (
        scripted_server(lambda _: Reply(404)) as server,
        open_source(f"{server.host}/a/b:c", ACCESS) as source,
        trio.open_nursery() as nursery,
    ):
        assert isinstance(source, RegistrySource)
        source.resolve_ahead(nursery)
        with pytest.raises(RegistryError, match="404"):
            await source.resolve()
