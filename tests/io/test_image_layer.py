"""One EROFS image: pure steps run on readers, what fails thrown into them."""

import threading
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import lazyfs.image.erofs_layer
from cache.memo import Memo
from lazyfs.errors import (
    ImageFormatError,
    LazyfsError,
    PlanError,
    SourceUnavailableError,
    TruncatedRecordError,
)
from lazyfs.image.erofs_layer import IN_PLACE_BYTES, ErofsLayer, InodeMemory
from lazyfs.model import Nid
from lazyfs.steps import Derive, Need, Steps
from tests.support.erofs_files import golden_devices
from tests.support.layer_builder import erofs_image, file
from tests.support.layer_stacks import MemoryReader, nid_of

DATA = bytes(range(256)) * 10


def layer_of(*devices: bytes, hesitant: bool = False) -> ErofsLayer:
    readers = [MemoryReader(data, hesitant=hesitant) for data in devices]
    return ErofsLayer(0, readers, Memo(1 << 20))


def read_two() -> Steps[bytes]:
    first = yield Need(0, 1, 2)
    second = yield Need(1, 3, 1)
    return first + second


@pytest.mark.parametrize("hesitant", [False, True])
async def test_steps_get_the_bytes_that_they_need(hesitant: bool):
    assert await layer_of(DATA, b"abcd", hesitant=hesitant).run(read_two()) == b"\1\2d"


async def test_steps_that_need_nothing_end_at_once():
    def steps() -> Steps[int]:
        return 7
        yield Need(0, 0, 1)

    assert await layer_of().run(steps()) == 7


@pytest.mark.parametrize(
    "need", [Need(0, 2560, 1), Need(0, 0, 2561), Need(1, 0, 1), Need(0, -1, 4), Need(0, 1 << 70, 1)]
)
async def test_what_fails_is_thrown_into_the_steps(need: Need):
    def steps() -> Steps[bytes]:
        try:
            data = yield need
        except TruncatedRecordError:
            data = yield Need(0, 5, 1)
        return data

    def careless() -> Steps[bytes]:
        return (yield need)

    assert await layer_of(DATA).run(steps()) == b"\5"
    with pytest.raises(TruncatedRecordError):
        await layer_of(DATA).run(careless())


async def test_a_device_that_was_not_given_is_named():
    with pytest.raises(TruncatedRecordError, match=r"data on device 1, .* given 0 devices"):
        await layer_of(DATA).run(read_two())


async def test_an_error_that_is_not_ours_ends_the_steps():
    class Broken(MemoryReader):
        async def read(self, offset: int, length: int) -> bytes:
            raise ZeroDivisionError

    def steps() -> Steps[bytes]:
        try:
            return (yield Need(0, 0, 1))
        except Exception:  # noqa: BLE001
            return b"hidden"

    layer = ErofsLayer(0, [Broken(DATA, hesitant=True)], Memo(0))
    with pytest.raises(ZeroDivisionError):
        await layer.run(steps())


class Computation:
    """Joins its inputs; counts, and notes in which thread."""

    def __init__(self, error: Exception | None = None) -> None:
        self.threads: list[int] = []
        self.error = error

    def __call__(self, inputs: Sequence[bytes]) -> bytes:
        self.threads.append(threading.get_ident())
        if self.error is not None:
            raise self.error
        return b"".join(inputs)

    def steps(self, key: int = 1, size: int = 10) -> Steps[bytes]:
        inputs = (Need(0, 0, 2), Need(0, 4, 2))
        return (yield Derive((key,), inputs, self, size))


@pytest.mark.parametrize("size", [10, IN_PLACE_BYTES + 1])
async def test_what_is_derived_is_computed_once_for_all(size: int):
    layer, computation = layer_of(DATA, hesitant=True), Computation()
    results = []

    async def ask() -> None:
        results.append(await layer.run(computation.steps(size=size)))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    await ask()
    assert results == [b"\0\1\4\5"] * 21
    assert len(computation.threads) == 1


async def test_small_results_are_computed_in_place_and_large_ones_in_a_thread():
    layer, small, large = layer_of(DATA), Computation(), Computation()
    await layer.run(small.steps(1, IN_PLACE_BYTES))
    await layer.run(large.steps(2, IN_PLACE_BYTES + 1))
    assert small.threads == [threading.get_ident()]
    assert large.threads != small.threads


async def test_layers_do_not_take_each_others_results():
    memo = Memo(1 << 20)
    one = ErofsLayer(1, [MemoryReader(DATA)], memo)
    other = ErofsLayer(2, [MemoryReader(DATA[::-1])], memo)
    computation = Computation()
    assert await one.run(computation.steps()) == b"\0\1\4\5"
    assert await other.run(computation.steps()) == b"\xff\xfe\xfb\xfa"
    assert await one.run(computation.steps(2)) == b"\0\1\4\5"
    assert len(computation.threads) == 3


@pytest.mark.parametrize("size", [10, IN_PLACE_BYTES + 1])
async def test_what_cannot_be_derived_is_thrown_into_the_steps_of_all(size: int):
    layer = layer_of(DATA, hesitant=True)
    computation = Computation(ImageFormatError("broken"))
    caught = []

    def steps() -> Steps[bytes]:
        try:
            return (yield from computation.steps(size=size))
        except ImageFormatError as error:
            caught.append(str(error))
            return b"instead"

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(layer.run, steps())
    assert caught == ["broken"] * 5
    assert len(computation.threads) == 1
    computation.error = None
    assert await layer.run(computation.steps(size=size)) == b"\0\1\4\5"


async def test_a_reader_who_gives_up_leaves_the_derivation_to_others():
    class Waiting(MemoryReader):
        gate = trio.Event()

        async def read(self, offset: int, length: int) -> bytes:
            await self.gate.wait()
            return await super().read(offset, length)

    reader = Waiting(DATA, hesitant=True)
    layer, computation = ErofsLayer(0, [reader], Memo(100)), Computation()
    results = []

    async def ask() -> None:
        results.append(await layer.run(computation.steps()))

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as inner:
            inner.start_soon(ask)
            await wait_all_tasks_blocked()
            outer.start_soon(ask)
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        reader.gate.set()
    assert results == [b"\0\1\4\5"]


IMAGE = erofs_image({b"d/%d" % number: file(b"%d" % number) for number in range(50)})


async def test_inodes_are_remembered_up_to_a_limit_for_all_layers(monkeypatch):
    monkeypatch.setattr(lazyfs.image.erofs_layer, "MAX_INODES", 3)
    memory = InodeMemory()
    layers = []
    for number in range(2):
        layers.append(ErofsLayer(number, [MemoryReader(IMAGE)], Memo(0), memory))
        await layers[-1].open()
    nids = [Nid(nid_of(IMAGE, b"d/%d" % number)) for number in range(4)]
    first = await layers[0].inode(nids[0])
    other = await layers[1].inode(nids[0])
    assert await layers[0].inode(nids[0]) is first
    assert await layers[1].inode(nids[0]) is other is not first
    for nid in nids[1:]:
        await layers[0].inode(nid)
    assert len(memory._inodes) == 3
    assert await layers[0].inode(nids[0]) is not first
    assert (await layers[0].inode(nids[0])).size_bytes == first.size_bytes


@pytest.mark.parametrize("size", [0, 1000, 1024, 1100])
async def test_what_is_too_short_to_be_an_image_is_refused(size: int):
    with pytest.raises(LazyfsError):
        await layer_of(IMAGE[:size]).open()


async def test_a_source_that_fails_is_told_and_the_next_try_works():
    class Failing(MemoryReader):
        down = True

        async def read(self, offset: int, length: int) -> bytes:
            if self.down:
                raise SourceUnavailableError("registry.test: gone")
            return await super().read(offset, length)

    reader = Failing(IMAGE, hesitant=True)
    layer = ErofsLayer(0, [reader], Memo(0))
    with pytest.raises(SourceUnavailableError):
        await layer.open()
    reader.down = False
    await layer.open()
    node = await layer.lookup(layer.image.root_nid, b"d")
    reader.down = True
    with pytest.raises(SourceUnavailableError):
        await layer.lookup(node.nid, b"7")
    reader.down = False
    found = await layer.lookup(node.nid, b"7")
    assert await layer.read(found.nid, 0, 10) == b"7"


async def test_an_image_of_two_devices_needs_both():
    main, extra = golden_devices("device")
    layer = layer_of(main)
    await layer.open()
    with pytest.raises(PlanError, match="data on 1 more devices, 0 are there"):
        layer.attach([])
    layer = layer_of(main)
    await layer.open()
    with pytest.raises(PlanError, match=r"device 1 has \d+ bytes, the image uses"):
        layer.attach([MemoryReader(extra[:4096])])
    layer = layer_of(main)
    await layer.open()
    layer.attach([MemoryReader(extra)])
