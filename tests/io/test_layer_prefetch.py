"""All of an image in the background: it comes, it is not read back, and reads go first."""

from collections.abc import Sequence

import trio

import lazyfs.layer.prefetch
from lazyfs.layer.hashes import PIECE_BYTES, PIECES_AT_ONCE
from lazyfs.layer.prefetch import prefetch
from lazyfs.layer.seekable import FrameLayer, VerityLayer
from lazyfs.model import ByteRange, VerifyMode
from tests.support import layer_builder as build
from tests.support.layer_builder import Verity
from tests.support.layer_rig import noise, rigged
from tests.support.settled import wait_all_settled

CHUNK = 65536
IMAGE = noise(10 * CHUNK + 100)
FORMS = [
    build.seekable(IMAGE, CHUNK, Verity(512)),
    build.seekable(IMAGE, CHUNK, None),
    build.spec_seekable(IMAGE, CHUNK),
    build.raw(IMAGE),
    build.zstd(IMAGE),
]


async def test_everything_comes_and_the_source_is_needed_no_more(monkeypatch):
    monkeypatch.setattr(lazyfs.layer.prefetch, "STEP_BYTES", 3 * CHUNK)
    async with rigged() as rig:
        layers = [await rig.open(layer) for layer in FORMS]
        layers.append(await rig.open(FORMS[0], VerifyMode.FETCH))
        await prefetch([layer.reader for layer in layers])
        for layer in layers:
            layer.blob.down = True
            await layer.expect_all()


async def test_what_is_there_is_neither_fetched_nor_read():
    async with rigged() as rig:
        layer = await rig.open(FORMS[0])
        await layer.expect_all()
        layer.blob.forget()
        hits = rig.store.statistics().hits
        read = layer.counters.read_bytes
        await prefetch([layer.reader])
        assert layer.blob.requests == []
        assert rig.store.statistics().hits == hits
        assert layer.counters.read_bytes == read


async def test_a_layer_that_fails_does_not_keep_others_from_coming(caplog, monkeypatch):
    monkeypatch.setattr(lazyfs.layer.prefetch, "STEP_BYTES", CHUNK)
    async with rigged() as rig:
        broken, whole = await rig.open(FORMS[0]), await rig.open(build.seekable(noise(CHUNK, 1)))
        broken.blob.down = True
        await prefetch([broken.reader, whole.reader])
        assert len(broken.blob.requests) <= 2 * lazyfs.layer.prefetch.STEPS_AT_ONCE
        whole.blob.down = True
        await whole.expect_all()
        broken.blob.down = False
        await broken.expect_all()
    warnings = [line for line in caplog.messages if line.startswith("background fetch")]
    assert 1 <= len(warnings) <= lazyfs.layer.prefetch.STEPS_AT_ONCE


async def test_only_the_hash_blocks_of_what_comes_are_fetched_with_it():
    """A reader gets their neighbours as well, for he is likely to need them next."""
    layer = build.seekable(noise(4 << 20), CHUNK, Verity(512))
    fetched = []
    for background in (True, False):
        async with rigged() as rig:
            opened = await rig.open(layer)
            rig.engine.turns.line.bytes_per_s = None  # not one that is too thin for neighbours
            where = ByteRange(31 * CHUNK, CHUNK)
            if background:
                await opened.reader.have([where])
            else:
                await opened.expect(*where)
            of_tree = [asked for asked in opened.blob.requests if asked.offset > layer.tree.offset]
            fetched.append([asked.length for asked in of_tree])
    assert fetched[0] == [PIECE_BYTES]
    ((length,),) = fetched[1:]
    assert PIECE_BYTES < length <= PIECES_AT_ONCE * PIECE_BYTES


async def test_who_reads_what_comes_anyway_makes_nothing_else_come():
    layer = build.seekable(noise(40 * CHUNK), CHUNK)
    fetched = []
    for coming in (range(20), range(20, 40)):
        async with rigged() as rig:
            opened = await rig.open(layer)
            assert opened.reader.ahead is not None
            opened.reader.ahead.coming = coming
            for offset in range(0, 10 * CHUNK, CHUNK // 2):
                await opened.reader.read_once(offset, CHUNK // 2)
            await wait_all_settled()
            fetched.append(sum(rig.store.contains(opened.key(chunk)) for chunk in range(40)))
    assert fetched[0] == 10
    assert fetched[1] > 10


async def test_reads_do_not_wait_for_it(monkeypatch):
    monkeypatch.setattr(lazyfs.layer.prefetch, "STEP_BYTES", CHUNK)
    async with rigged() as rig:
        rig.engine.requests.total_tokens = 4
        images = [noise(10 * CHUNK, seed) for seed in range(1, 10)]
        slow = [await rig.open(build.seekable(image, CHUNK, None)) for image in images]
        quick = await rig.open(FORMS[1])
        gates = [layer.blob.stall_at() for layer in slow]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, [layer.reader for layer in slow])
            await wait_all_settled()
            assert rig.engine.requests.borrowed_tokens == lazyfs.layer.prefetch.STEPS_AT_ONCE
            await quick.expect_all()
            for go in gates:
                go()
        for layer in slow:
            assert isinstance(layer.reader, FrameLayer)
            assert not isinstance(layer.reader, VerityLayer)
            layer.blob.down = True
            await layer.expect_all()


async def test_a_bug_ends_neither_the_mount_nor_the_other_layers(caplog, monkeypatch):
    async with rigged() as rig:
        buggy, whole = await rig.open(FORMS[0]), await rig.open(build.seekable(noise(CHUNK, 1)))

        async def have(ranges: Sequence[ByteRange]) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(buggy.reader, "have", have)
        await prefetch([buggy.reader, whole.reader])
        assert "internal error" in caplog.text
        whole.blob.down = True
        await whole.expect_all()
