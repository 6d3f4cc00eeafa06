"""What is kept of images: asked for once, proven when read back; tags are asked about each time."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cache.documents import DocumentFolder
from lazyfs.documents import RESERVE_S, Documents, KeptSource, KeptSpans
from lazyfs.model import ByteRange
from registry.digest import Digest
from registry.errors import (
    ContentError,
    DeniedError,
    NotFoundError,
    RegistryError,
    ResponseError,
    TransportError,
)
from registry.manifest import Descriptor

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NAME = "registry.test/app:1"


def manifest(text: str) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "note": text}).encode()


def described(raw: bytes) -> Descriptor:
    return Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw))


class Source:
    """An image whose registry fails as asked."""

    def __init__(self, name: str = NAME) -> None:
        self.name = name
        self.means = manifest("first")
        self.failure: RegistryError | None = None
        self.hangs = False
        self.calls: Counter[str] = Counter()

    async def _ask(self, what: str) -> None:
        self.calls[what] += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.failure is not None:
            raise self.failure

    async def resolve(self) -> Descriptor:
        await self._ask("resolve")
        return described(self.means)

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        await self._ask("manifest")
        return self.means

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        await self._ask("content")
        return b"content"

    async def open_blob(self, descriptor: Descriptor):
        raise NotImplementedError

    def hosts(self) -> tuple:
        return ()


@pytest.fixture
def documents(tmp_path: Path):
    with DocumentFolder.open(tmp_path, "documents") as folder:
        yield Documents(folder)


UNREACHABLE = [
    TransportError("registry.test: connection refused"),
    *(ResponseError("registry.test: bad gateway", status=status) for status in (502, 503, 504)),
]
ANSWERS = [
    NotFoundError("registry.test/app: not found", status=404),
    DeniedError("registry.test/app: not allowed", status=401),
    ResponseError("registry.test/app: broken", status=500),
    ContentError("registry.test/app: not JSON"),
]


@pytest.mark.parametrize("failure", UNREACHABLE, ids=str)
async def test_an_unreachable_tag_is_remembered_and_said_so(documents, failure, caplog):
    source = Source()
    first = await KeptSource(source, documents).resolve()
    source.failure = failure
    kept = KeptSource(source, documents)
    assert await kept.resolve() == first
    assert kept.note is not None
    assert str(failure) in kept.note
    assert kept.note in caplog.text


@pytest.mark.parametrize("failure", ANSWERS, ids=str)
async def test_an_answer_counts(documents, failure):
    source = Source()
    await KeptSource(source, documents).resolve()
    source.failure = failure
    with pytest.raises(type(failure)):
        await KeptSource(source, documents).resolve()


async def test_a_tag_that_was_never_resolved_is_not_invented(documents):
    source = Source()
    source.failure = UNREACHABLE[0]
    with pytest.raises(TransportError):
        await KeptSource(source, documents).resolve()


async def test_a_tag_that_moved_means_something_else(documents):
    source = Source()
    await KeptSource(source, documents).resolve()
    source.means = manifest("second")
    assert await KeptSource(source, documents).resolve() == described(source.means)
    source.failure = UNREACHABLE[0]
    assert await KeptSource(source, documents).resolve() == described(source.means)


async def test_a_host_that_does_not_answer_leaves_time_for_what_is_kept(documents):
    source = Source()
    first = await KeptSource(source, documents).resolve()
    source.hangs = True
    kept = KeptSource(source, documents)
    with trio.fail_after(RESERVE_S + 0.1):
        assert await kept.resolve() == first
    assert kept.note is not None
    assert "no answer" in kept.note


async def test_other_names_are_other_names(documents):
    await KeptSource(Source(), documents).resolve()
    other = Source("registry.test/app:2")
    other.failure = UNREACHABLE[0]
    with pytest.raises(TransportError):
        await KeptSource(other, documents).resolve()


async def test_a_manifest_is_asked_for_once(documents):
    source = Source()
    kept = KeptSource(source, documents)
    descriptor = await kept.resolve()
    for _ in range(3):
        assert await kept.fetch_manifest(descriptor) == source.means
    assert source.calls["manifest"] == 1


async def test_content_is_asked_for_once(documents):
    source = Source()
    kept = KeptSource(source, documents)
    descriptor = Descriptor("text/plain", Digest.of(b"content"), 7)
    for _ in range(3):
        assert await kept.fetch_content(descriptor, 100) == b"content"
    assert source.calls["content"] == 1


async def test_what_is_kept_under_a_digest_is_proven_by_it(documents):
    source = Source()
    kept = KeptSource(source, documents)
    descriptor = await kept.resolve()
    await kept.fetch_manifest(descriptor)
    name = f"manifest-{descriptor.digest.algorithm}-{descriptor.digest.encoded}"
    await documents.write(name, manifest("forged"))
    assert await kept.fetch_manifest(descriptor) == source.means
    assert await documents.read(name) == source.means


async def test_a_digest_that_is_kept_needs_nobody(documents):
    source = Source()
    kept = KeptSource(source, documents)
    descriptor = await kept.resolve()
    await kept.fetch_manifest(descriptor)
    by_digest = Source(f"registry.test/app@{descriptor.digest}")
    assert await KeptSource(by_digest, documents).resolve() == descriptor
    assert by_digest.calls == {}


async def test_a_digest_that_is_not_kept_is_asked_about(documents):
    source = Source(f"registry.test/app@{Digest.of(b'x')}")
    await KeptSource(source, documents).resolve()
    assert source.calls["resolve"] == 1


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"digest": 1}', b"\xff"])
async def test_notes_of_another_form_are_passed_over(documents, text, tmp_path):
    source = Source()
    await KeptSource(source, documents).resolve()
    [name] = [path.name for path in (tmp_path / "documents").glob("name-*")]
    await documents.write(name, text)
    assert await KeptSource(source, documents).resolve() == described(source.means)


async def test_without_a_folder_all_is_asked_for():
    source = Source()
    for _ in range(2):
        kept = KeptSource(source, Documents(None))
        await kept.fetch_manifest(await kept.resolve())
    assert source.calls == {"resolve": 2, "manifest": 2}


class Blob:
    """Bytes that may be wrong."""

    size_bytes = 1000
    origin = "registry.test"
    ranges_at_once = 1

    def __init__(self) -> None:
        self.fetched: list[ByteRange] = []
        self.distrusted: list[ByteRange] = []

    async def fetch(self, where: ByteRange) -> bytes:
        self.fetched.append(where)
        return bytes([len(self.fetched)]) * where.length

    @asynccontextmanager
    async def stream(self, *ranges: ByteRange) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"streamed"

        yield pieces()

    def distrust(self, where: ByteRange) -> str:
        self.distrusted.append(where)
        return self.origin


DIGEST = Digest.of(b"the blob")
SPAN = ByteRange(10, 20)


async def test_spans_are_kept_until_the_layer_is_open(documents):
    blob = Blob()
    spans = KeptSpans(blob, DIGEST, documents)
    assert await spans.fetch(SPAN) == b"\1" * 20
    assert await spans.fetch(SPAN) == b"\1" * 20
    spans.opened()
    assert await spans.fetch(SPAN) == b"\2" * 20
    assert await KeptSpans(Blob(), DIGEST, documents).fetch(SPAN) == b"\1" * 20
    assert await KeptSpans(Blob(), Digest.of(b"another"), documents).fetch(SPAN) == b"\1" * 20
    assert len(blob.fetched) == 2


async def test_a_kept_span_that_is_distrusted_is_fetched_again(documents):
    await KeptSpans(Blob(), DIGEST, documents).fetch(SPAN)
    blob = Blob()
    spans = KeptSpans(blob, DIGEST, documents)
    await spans.fetch(SPAN)
    assert spans.distrust(SPAN) == "the cache folder"
    assert blob.distrusted == []
    await spans.fetch(SPAN)
    assert blob.fetched == [SPAN]
    assert spans.distrust(SPAN) == "registry.test"
    assert blob.distrusted == [SPAN]


async def test_all_that_was_kept_can_be_given_up_at_once(documents):
    fresh = KeptSpans(Blob(), DIGEST, documents)
    await fresh.fetch(SPAN)
    assert not fresh.give_up_kept()
    spans = KeptSpans(Blob(), DIGEST, documents)
    await spans.fetch(SPAN)
    assert spans.give_up_kept()
    assert not spans.give_up_kept()


async def test_streams_go_through(documents):
    spans = KeptSpans(Blob(), DIGEST, documents)
    async with spans.stream(SPAN) as pieces:
        assert [piece async for piece in pieces] == [b"streamed"]
    assert (spans.size_bytes, spans.origin) == (1000, "registry.test")
