"""The tree of a store: numbers that mean the same to every daemon, names that may come."""

import pytest
import trio

from lazyfs import errors
from lazyfs.model import ROOT_NODE
from lazyfs.store.file import LayerFile
from lazyfs.store.index import StoredImage, decode, encode
from lazyfs.store.tree import FileTree, node_of


class Bytes:
    """A reader of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        return None

    read_once_nowait = read_nowait

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    async def read_once(self, offset: int, length: int) -> bytes:
        return await self.read(offset, length)

    async def read_proven(self, offset: int, length: int) -> bytes:
        return await self.read(offset, length)

    def has_gaps(self) -> bool:
        return False


async def test_a_file_is_found_listed_and_read(nursery: trio.Nursery):
    async def opener() -> Bytes:
        return Bytes(b"image")

    tree = FileTree()
    assert tree.add((b"sha256", b"ab", b"abc"), LayerFile(nursery, opener))
    assert not tree.add((b"sha256", b"ab", b"abc"), LayerFile(nursery, opener))
    folder = await tree.lookup(await tree.lookup(ROOT_NODE, b"sha256"), b"ab")
    [entry] = await tree.entries(folder, 0)
    assert (entry.name, entry.node) == (b"abc", await tree.lookup(folder, b"abc"))
    assert not await tree.entries(folder, entry.next_position)
    assert (await tree.attributes(entry.node)).size_bytes == 5
    assert await tree.read(entry.node, 2, 100) == b"age"
    assert await tree.read(entry.node, 5, 1) == await tree.read(entry.node, 9, 1) == b""
    with pytest.raises(errors.NotADirectoryNodeError):
        await tree.lookup(entry.node, b"x")
    with pytest.raises(errors.NotAFileNodeError):
        await tree.read(folder, 0, 1)
    with pytest.raises(errors.SourceUnavailableError, match="not known"):
        await tree.read(node_of((b"other",)), 0, 1)


def test_a_number_comes_from_the_path_alone():
    assert node_of((b"a", b"b")) == node_of((b"a", b"b")) != node_of((b"a",))
    assert 1 << 32 <= node_of((b"x",)) < 1 << 63


async def test_what_is_missed_is_looked_for_again(nursery: trio.Nursery):
    async def opener() -> Bytes:
        return Bytes(b"")

    async def look_again() -> None:
        tree.add((b"late",), LayerFile(nursery, opener))

    tree = FileTree(look_again)
    assert await tree.lookup(ROOT_NODE, b"late") == node_of((b"late",))
    with pytest.raises(errors.NotYetThereError):
        await tree.lookup(ROOT_NODE, b"never")


async def test_a_failure_is_for_those_who_wait_and_nobody_else(nursery: trio.Nursery):
    tries: list[trio.Event] = []

    async def opener() -> Bytes:
        tries.append(trio.Event())
        if len(tries) == 1:
            await tries[0].wait()
            raise errors.DigestMismatchError("wrong")
        return Bytes(b"")

    file = LayerFile(nursery, opener)
    seen: list[str] = []

    async def want() -> None:
        try:
            await file.opened()
        except errors.DigestMismatchError as error:
            seen.append(str(error))

    async with trio.open_nursery() as readers:
        for _ in range(3):
            readers.start_soon(want)
        await trio.testing.wait_all_tasks_blocked()
        tries[0].set()
    assert seen == ["wrong"] * 3
    assert file.last_error == "wrong"
    assert (await file.opened()).size_bytes == 0
    assert len(tries) == 2
    assert file.last_error is None


async def test_opening_goes_on_when_its_reader_gives_up(nursery: trio.Nursery):
    go = trio.Event()

    async def opener() -> Bytes:
        await go.wait()
        return Bytes(b"x")

    file = LayerFile(nursery, opener)
    with trio.CancelScope() as scope:
        scope.cancel()
        await file.opened()
    go.set()
    assert (await file.opened()).size_bytes == 1


def test_an_index_is_read_as_it_was_written():
    images = (StoredImage("a/b:c", "{}", ("sha256:00",)), StoredImage("x", "{}", ()))
    assert decode(encode(images)) == images
    assert decode(None) == ()


@pytest.mark.parametrize("text", [b"", b"[]", b'{"version": 2}', b'{"version": 1, "images": [{}]}'])
def test_a_foreign_index_is_refused(text: bytes):
    with pytest.raises(errors.PlanError):
        decode(text)
