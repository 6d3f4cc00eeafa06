"""Several ranges by one request: where a registry gives them, and what becomes of it where not."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.errors import ContentError, NotFoundError, OneRangeError, RegistryError
from registry.interfaces import Access, BlobReader
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.severalranges import AT_ONCE
from registry.transports import open_destination, open_source
from tests.support import fake_registry
from tests.support.fake_registry import (
    Break,
    FakeRegistry,
    always,
    first,
    mirror_table,
    multipart,
    write_hosts,
)
from tests.support.http_server import Reply, Request
from tests.support.registry_server import running_registry

DATA = bytes(range(256)) * 4000
BLOB = Descriptor(OCTET_STREAM, Digest.of(DATA), len(DATA))
RANGES = [(200_000, 70_000), (5, 1), (270_001, 4096), (len(DATA) - 3, 3)]
HUNG_UP = Reply(raw=b"")
WANTED = b"".join(DATA[offset : offset + length] for offset, length in RANGES)


async def together(reader: BlobReader, came: bytearray | None = None) -> bytes:
    """What several ranges give; what came of it before an error is in ``came``."""
    came = bytearray() if came is None else came
    async with reader.stream(*RANGES[0], *RANGES[1:]) as pieces:
        async for piece in pieces:
            came += piece
    return bytes(came)


@contextlib.asynccontextmanager
async def reading(registry: FakeRegistry) -> AsyncIterator[BlobReader]:
    async with (
        fake_registry.serving(registry),
        open_source(f"{registry.host}/a/b:c", Access(timeout_s=5)) as source,
    ):
        yield await source.open_blob(BLOB)


async def test_a_real_registry_gives_them_by_one_answer(tmp_path: Path):
    with running_registry(tmp_path / "registry") as server:
        name = f"{server.host}/a/b:c"

        async def content() -> AsyncIterator[bytes]:
            yield DATA

        async with open_destination(name, Access(timeout_s=20)) as destination:
            await destination.push_blob(BLOB, content)
        async with open_source(name, Access(timeout_s=20)) as source:
            reader = await source.open_blob(BLOB)
            assert await together(reader) == WANTED
            assert reader.ranges_at_once == AT_ONCE


async def test_it_is_one_request_and_known_from_then_on():
    registry = FakeRegistry([DATA])
    async with reading(registry) as reader:
        assert reader.ranges_at_once == AT_ONCE
        assert await together(reader) == WANTED
        spans = (f"{offset}-{offset + length - 1}" for offset, length in RANGES)
        assert registry.ranges() == [",".join(spans)]
        registry.breaks = always(HUNG_UP)
        with pytest.raises(RegistryError):
            await together(reader)
        assert reader.ranges_at_once == AT_ONCE, "it has worked before"


async def test_while_one_tries_others_ask_for_one_range():
    registry = FakeRegistry([DATA])
    async with reading(registry) as reader:
        async with reader.stream(*RANGES[0], *RANGES[1:]) as pieces:
            await anext(pieces)
            assert reader.ranges_at_once == 1
            assert await reader.fetch(10, 100) == DATA[10:110]
        assert reader.ranges_at_once == AT_ONCE, "who tried did not end"
        assert await together(reader) == WANTED


def shifted(request: Request, reply: Reply) -> Reply:
    return multipart(DATA, [(offset + 1, offset + length) for offset, length in RANGES])


def covering(request: Request, reply: Reply) -> Reply:
    headers = {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}
    return Reply(206, DATA[5:], headers)


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(always(Reply(200, DATA)), id="whole"),
        pytest.param(covering, id="one range over all"),
        pytest.param(shifted, id="other ranges"),
        pytest.param(always(Reply(206, WANTED)), id="nothing said"),
        *(pytest.param(always(Reply(status)), id=str(status)) for status in (400, 416, 500, 501)),
        pytest.param(always(HUNG_UP), id="hung up"),
    ],
)
async def test_who_does_not_is_asked_for_one_range_from_then_on(breaks: Break):
    registry = FakeRegistry([DATA], breaks=breaks)
    async with reading(registry) as reader:
        with pytest.raises(RegistryError):
            await together(reader)
        assert all(ranges.count(",") == 3 for ranges in registry.ranges()), "nothing else is tried"
        assert reader.ranges_at_once == 1
        registry.breaks = fake_registry.honest
        assert await reader.fetch(10, 100) == DATA[10:110]


async def test_a_whole_blob_in_place_of_ranges_is_not_read():
    data = bytes(64 << 20)
    blob = Descriptor(OCTET_STREAM, Digest.of(data), len(data))
    registry = FakeRegistry([data], sends_several=False)
    async with (
        fake_registry.serving(registry),
        open_source(f"{registry.host}/a/b:c", Access(timeout_s=60)) as source,
    ):
        reader = await source.open_blob(blob)
        with pytest.raises(OneRangeError):
            await together(reader)
        assert await reader.fetch(40 << 20, 1000) == bytes(1000)
        assert registry.server is not None
        assert registry.server.sent_bytes < 32 << 20, "what sockets hold"


@pytest.mark.parametrize("status", [404, 429, 503])
async def test_what_has_other_reasons_says_nothing_of_ranges(status: int):
    registry = FakeRegistry([DATA], breaks=first(1, Reply(status)))
    async with reading(registry) as reader:
        with pytest.raises(RegistryError) as failure:
            await together(reader)
        assert not isinstance(failure.value, OneRangeError)
        assert isinstance(failure.value, NotFoundError) == (status == 404)
        assert reader.ranges_at_once == AT_ONCE
        assert await together(reader) == WANTED


async def test_a_cut_answer_gives_what_came_and_an_error():
    def cut(request: Request, reply: Reply) -> Reply:
        return Reply(206, reply.body[:60_000], reply.headers, length=len(reply.body), cut=True)

    registry = FakeRegistry([DATA], breaks=cut)
    async with reading(registry) as reader:
        came = bytearray()
        with pytest.raises(RegistryError):
            await together(reader, came)
        assert came == DATA[200_000:270_000][: len(came)]
        assert 50_000 < len(came) < 60_000


async def test_who_gave_a_wrong_range_of_several_is_known(tmp_path: Path):
    registry, mirror = FakeRegistry([DATA]), FakeRegistry([DATA])
    async with fake_registry.serving(registry), fake_registry.serving(mirror):
        folders = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        access = Access(timeout_s=5, hosts_dirs=folders)
        async with open_source(f"{registry.host}/a/b:c", access) as source:
            reader = await source.open_blob(BLOB)
            assert await together(reader) == WANTED
            assert len(mirror.content()) == 1
            assert reader.distrust(*RANGES[2]) == mirror.host
            assert await together(reader) == WANTED
            assert len(registry.content()) == 1, "who lied is asked last"


async def test_ranges_outside_of_the_blob_are_not_asked_for():
    registry = FakeRegistry([DATA])
    async with reading(registry) as reader:
        with pytest.raises(ContentError, match="not inside"):
            reader.stream(0, 5, (len(DATA), 1))
        assert registry.content() == []
