"""Every way in which a server of blobs may misbehave, and what comes of it.

Each fault is tried three ways: once, and then the server is honest; for ever; and for ever at a
mirror, before an honest registry.
"""

import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from registry import client
from registry.digest import Digest
from registry.errors import (
    ContentError,
    DeniedError,
    NotFoundError,
    ProtocolError,
    RegistryError,
    ResponseError,
    TooManyRequestsError,
    TransportError,
)
from registry.health import HostStatus
from registry.interfaces import Access, BlobReader, ImageSource
from registry.manifest import Descriptor
from registry.mediatype import OCTET_STREAM
from registry.transports import open_source
from tests.support import broken_answers as broken
from tests.support.fake_registry import (
    Break,
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
OTHER = DATA[1:]
TIMEOUT_S = 12.0
SLACK_S = TIMEOUT_S / 2 + 1
OFFSET, LENGTH = 1000, 5000


class Fault(NamedTuple):
    breaks: Break
    error: type[RegistryError]
    """What an operation ends with if nobody else has the blob."""
    why: str
    once_is_fatal: bool = False
    """Whether the same server is not asked again."""
    harmless: bool = False
    """Whether the answer can be used all the same."""


def whole(request: Request, reply: Reply) -> Reply:
    return Reply(200, DATA)


FAULTS = {
    "400": Fault(always(Reply(400)), ResponseError, "400", once_is_fatal=True),
    "403": Fault(always(Reply(403)), DeniedError, "403", once_is_fatal=True),
    "404": Fault(always(Reply(404)), NotFoundError, "404", once_is_fatal=True),
    "416": Fault(always(Reply(416)), ResponseError, "416", once_is_fatal=True),
    "429": Fault(always(Reply(429)), TooManyRequestsError, "429"),
    "429, for a second": Fault(
        always(Reply(429, headers={"Retry-After": "1"})), TooManyRequestsError, "429"
    ),
    "429, for a day": Fault(
        always(Reply(429, headers={"Retry-After": "86400"})),
        TooManyRequestsError,
        "429",
        once_is_fatal=True,
    ),
    "500": Fault(always(Reply(500)), ResponseError, "500"),
    "502": Fault(always(Reply(502)), ResponseError, "502"),
    "503": Fault(always(Reply(503)), ResponseError, "503"),
    "504": Fault(always(Reply(504)), ResponseError, "504"),
    "204": Fault(always(Reply(204)), ResponseError, "204", once_is_fatal=True),
    "range ignored": Fault(whole, RegistryError, "-", harmless=True),
    "other range": Fault(broken.other_range, ProtocolError, "asked for bytes"),
    "other size": Fault(broken.other_size, ContentError, "is 99999 bytes there"),
    "no Content-Range": Fault(broken.no_content_range, ProtocolError, "Content-Range None"),
    "multipart": Fault(broken.multipart, ProtocolError, "Content-Range None"),
    "too short": Fault(broken.too_short, ContentError, "wanted 5000"),
    "too short, chunked": Fault(broken.too_short_chunked, TransportError, "lacks"),
    "too long": Fault(broken.too_long, ContentError, "5001 bytes, wanted 5000"),
    "too long, chunked": Fault(broken.too_long_chunked, ContentError, "longer than"),
    "compressed": Fault(broken.squeezed, ContentError, "content encoding 'gzip'"),
    "reset before the answer": Fault(always(Reply(raw=b"", reset=True)), TransportError, "failed"),
    "hung up before the answer": Fault(always(Reply(raw=b"")), TransportError, "failed"),
    "reset in the body": Fault(broken.no_body(reset=True), TransportError, "connection failed"),
    "cut in the body": Fault(broken.no_body(cut=True), TransportError, "connection failed"),
    "never answers": Fault(always(Reply(hang=True)), TransportError, "no (complete )?answer"),
    "stalls in the body": Fault(broken.no_body(stall=True), TransportError, "stalled for"),
    "drips": Fault(broken.changed(drip_s=1.0), TransportError, "too slowly|no complete answer"),
    "web page": Fault(
        always(Reply(200, broken.PAGE, broken.HTML)), ProtocolError, "sent a web page"
    ),
    "web page, chunked": Fault(
        always(Reply(200, broken.PAGE, broken.HTML, chunked=True)), ProtocolError, "sent a web page"
    ),
    "web page for a part": Fault(
        broken.with_headers(Content_Type="text/html"), ProtocolError, "web page"
    ),
    "redirect loop": Fault(broken.loop, ProtocolError, "more than 5 redirects"),
    "redirect to plain HTTP elsewhere": Fault(
        always(broken.sent_to("http://192.0.2.1/x")),
        ProtocolError,
        "plain HTTP to another machine",
    ),
    "redirect to another protocol": Fault(
        always(broken.sent_to("ftp://localhost/x")), ProtocolError, "not plain"
    ),
    "redirect to nowhere": Fault(always(Reply(307)), ProtocolError, "without a usable Location"),
    "not HTTP": Fault(always(broken.NOT_HTTP), TransportError, "failed"),
    "a header without end": Fault(always(broken.ENDLESS_HEADER), TransportError, "failed"),
    "many headers": Fault(always(broken.MANY_HEADERS), TransportError, "failed"),
    "odd length": Fault(broken.with_headers(Content_Length="x"), TransportError, "failed"),
    "odd encoding of the body": Fault(broken.odd_encoding, TransportError, "failed"),
}
CASES = pytest.mark.parametrize("name", FAULTS)


@contextlib.asynccontextmanager
async def opened(
    registry: FakeRegistry, hosts_dirs: tuple[Path, ...] | None = ()
) -> AsyncIterator[tuple[ImageSource, BlobReader]]:
    access = Access(timeout_s=TIMEOUT_S, hosts_dirs=hosts_dirs)
    async with open_source(f"{registry.host}/a/b:c", access) as source:
        yield source, await source.open_blob(BLOB)


@CASES
async def test_once(name, autojump_clock):
    fault = FAULTS[name]
    async with (
        serving(FakeRegistry([DATA])) as registry,
        opened(registry) as (_, reader),
    ):
        assert await reader.fetch(0, 10) == DATA[:10]
        registry.breaks = first(1, fault.breaks)
        began = trio.current_time()
        if fault.once_is_fatal:
            with pytest.raises(fault.error, match=fault.why):
                await reader.fetch(OFFSET, LENGTH)
            assert len(registry.ranges()) == 2
        else:
            assert await reader.fetch(OFFSET, LENGTH) == DATA[OFFSET : OFFSET + LENGTH]
            assert len(registry.ranges()) <= 4
        assert trio.current_time() - began <= TIMEOUT_S
        # And the source can be used as before.
        registry.breaks = honest
        assert await reader.fetch(20, 10) == DATA[20:30]


@CASES
async def test_for_ever(name, autojump_clock):
    fault = FAULTS[name]
    async with (
        serving(FakeRegistry([DATA], breaks=fault.breaks)) as registry,
        opened(registry) as (source, reader),
    ):
        began = trio.current_time()
        if fault.harmless:
            assert await reader.fetch(OFFSET, LENGTH) == DATA[OFFSET : OFFSET + LENGTH]
            return
        with pytest.raises(fault.error, match=fault.why) as caught:
            await reader.fetch(OFFSET, LENGTH)
        assert trio.current_time() - began <= TIMEOUT_S + SLACK_S
        assert registry.host in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(registry.ranges()) <= 18
        [status] = source.hosts()
        assert status.host == registry.host


@CASES
async def test_for_ever_at_a_mirror(name, tmp_path, autojump_clock):
    fault = FAULTS[name]
    async with (
        serving(FakeRegistry([DATA], breaks=fault.breaks)) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with opened(registry, hosts) as (source, reader):
            for offset in range(5, 5000, 500):
                assert await reader.fetch(offset, LENGTH) == DATA[offset : offset + LENGTH]
            statuses = {status.role: status for status in source.hosts()}
            assert statuses["mirror"].host == mirror.host
            assert statuses["registry"].state == "ok"
            if not fault.harmless:
                # It is not asked first again and again.
                assert len(mirror.ranges()) <= 6
                assert len(registry.ranges()) >= 10
            if issubclass(fault.error, ContentError) and not fault.harmless:
                assert statuses["mirror"].state == "distrusted"
                assert statuses["mirror"].for_s > 60


async def test_a_body_that_breaks_off_is_taken_up_where_it_ended(autojump_clock):
    for how in ({"cut": True}, {"reset": True}, {"stall": True}):
        async with (
            serving(FakeRegistry([DATA])) as registry,
            opened(registry) as (_, reader),
        ):
            registry.breaks = first(2, broken.half(**how))
            assert await reader.fetch(OFFSET, LENGTH) == DATA[OFFSET : OFFSET + LENGTH]
            starts = [int(wanted.partition("-")[0]) for wanted in registry.ranges()]
            assert starts[0] == OFFSET
            assert starts == sorted(starts)
            if "reset" not in how:  # RST may overtake bytes
                assert starts == [1000, 3500, 4750]


async def test_a_body_that_breaks_off_at_a_mirror_goes_on_elsewhere(tmp_path, autojump_clock):
    async with (
        serving(FakeRegistry([DATA], breaks=broken.half(cut=True))) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with opened(registry, hosts) as (_, reader):
            assert await reader.fetch(OFFSET, LENGTH) == DATA[OFFSET : OFFSET + LENGTH]
            assert mirror.ranges() == ["1000-5999"]
            assert registry.ranges() == ["3500-5999"]


def states(source: ImageSource) -> dict[str, HostStatus]:
    return {status.role: status for status in source.hosts()}


async def test_wrong_bytes_are_reported_and_the_next_host_is_asked(
    tmp_path, caplog, autojump_clock
):
    lie = bytes(reversed(DATA))
    async with (
        serving(
            FakeRegistry([DATA], breaks=lambda _, r: Reply(206, lie[: len(r.body)], r.headers))
        ) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with opened(registry, hosts) as (source, reader):
            assert await reader.fetch(0, 100) != DATA[:100]
            assert reader.distrust(0, 100) == mirror.host
            assert states(source)["mirror"].state == "distrusted"
            assert states(source)["mirror"].wrong_answers == 1
            assert "wrong bytes in 100 at 0" in str(states(source)["mirror"].last_problem)
            for _ in range(5):
                assert await reader.fetch(0, 100) == DATA[:100]
            assert len(mirror.ranges()) == 1
            # It is named once, and believed again after some time.
            assert caplog.text.count("gave a wrong answer") == 1
            assert mirror.host in caplog.text
            await trio.sleep(states(source)["mirror"].for_s)
            assert await reader.fetch(0, 100) != DATA[:100]


async def test_a_liar_is_better_than_nobody(tmp_path, autojump_clock):
    async with (
        serving(FakeRegistry([DATA])) as mirror,
        serving(FakeRegistry([DATA], breaks=always(Reply(503)))) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with opened(registry, hosts) as (_, reader):
            assert await reader.fetch(0, 100) == DATA[:100]
            reader.distrust(0, 100)
            assert await reader.fetch(0, 100) == DATA[:100]


async def test_whom_to_blame_for_a_range_of_two_hosts(tmp_path, autojump_clock):
    async with (
        serving(FakeRegistry([DATA], breaks=broken.half(cut=True))) as mirror,
        serving(FakeRegistry([DATA])) as registry,
    ):
        hosts = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror.host}"))
        async with opened(registry, hosts) as (source, reader):
            await reader.fetch(OFFSET, LENGTH)
            assert reader.distrust(OFFSET, LENGTH) == mirror.host
            assert states(source)["registry"].state == "ok"
            # The end came from the registry alone.
            assert reader.distrust(OFFSET + LENGTH - 10, 10) == registry.host
            # Of a range that was never asked for nobody is to blame.
            assert reader.distrust(0, 10) == registry.host
            assert states(source)["registry"].wrong_answers == 1


async def test_who_gave_what_is_remembered_up_to_one_limit_for_all_blobs(monkeypatch):
    monkeypatch.setattr(client, "REMEMBERED_RANGES", 5)
    before = _remembered()
    async with (
        serving(FakeRegistry([DATA, OTHER])) as registry,
        opened(registry) as (source, reader),
    ):
        other = await source.open_blob(Descriptor(OCTET_STREAM, Digest.of(OTHER), len(OTHER)))
        for offset in range(8):
            await reader.fetch(offset, 1)
            await other.fetch(offset, 1)
        assert _remembered() - before == 5


def _remembered() -> int:
    gc.collect()
    return sum(isinstance(thing, client.Served) for thing in gc.get_objects())
