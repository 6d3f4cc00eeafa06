"""Listings made beforehand are those that would be made when they are asked for."""

import random
import stat
import struct

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.fuse.listings import END, Listings
from lazyfs.fuse.protocol import IN_HEADER, Opcode
from lazyfs.image.merged import MergedTree
from lazyfs.image.single import SingleTree
from lazyfs.interfaces import ImageTree
from lazyfs.model import END_POSITION, ROOT_NODE, NodeId
from tests.support.layer_builder import erofs_image, file
from tests.support.layer_stacks import MemoryReader, images_of, open_layers, random_stack
from tests.support.memory_tree import MemoryTree

READ_IN = struct.Struct("=QQIIQII")
SIZE = 700
"""Room for four entries or so."""


def request(directory: NodeId, position: int, thread: int) -> bytes:
    body = READ_IN.pack(0, position, SIZE, 0, 0, 0, 0)
    head = (IN_HEADER.size + len(body), Opcode.READDIRPLUS, 2, directory, 0, 0, thread, 0, 0)
    return IN_HEADER.pack(*head) + body


def entries_in(answer: bytes) -> list[tuple[int, int, int]]:
    """Of a listing: inode, position and kind, without the dots; directories have attributes."""
    found, offset = [], 0
    while offset < len(answer):
        inode, position, length, kind = struct.unpack_from("=QQII", answer, offset + 128)
        if answer[offset + 152 : offset + 152 + length] not in (b".", b".."):
            found.append((inode, position, kind))
            known = struct.unpack_from("=Q", answer, offset)[0]
            assert known == inode if kind == stat.S_IFDIR >> 12 else known in (0, inode)
        offset += (152 + length + 7) // 8 * 8
    return found


async def walk(tree: ImageTree, rng: random.Random | None) -> list[bytes]:
    """All listings of a tree, depth first; with ``rng`` some are made beforehand."""
    listings = Listings(tree, 10)
    answers = []
    pending = [ROOT_NODE]
    curious = False
    while pending:
        directory = pending.pop()
        position, folders = 0, []
        while True:
            answer = bytes(
                await listings.with_attributes(directory, request(directory, position, 7))
            )
            answers.append(answer)
            for _ in range(rng.randrange(4) if rng else 0):
                await listings.prepare()
            if not answer:
                break
            entries = entries_in(answer)
            position = entries[-1][1] if entries else 2
            folders += [NodeId(inode) for inode, _, kind in entries if kind == stat.S_IFDIR >> 12]
        if not curious and len(answers) > 20:  # he looks at something
            listings.curious.looks_up(7, directory)
            curious = True
        pending += reversed(folders)
    return answers


@given(st.integers(0, 1 << 32), st.integers(1, 3))
@settings(max_examples=40)
def test_they_are_the_same(seed: int, count: int):
    async def main() -> None:
        images = images_of(random_stack(random.Random(seed), count))

        async def tree() -> ImageTree:
            layers = await open_layers(images)
            return SingleTree(layers[0]) if count == 1 else MergedTree(layers)

        wanted = await walk(await tree(), None)
        assert await walk(await tree(), random.Random(seed)) == wanted

    trio.run(main)


async def test_nothing_is_read_for_them_that_is_not_at_hand():
    lower = erofs_image({b"a/x": file(b""), b"b/x": file(b""), b"c/x": file(b"")})
    layers = await open_layers([lower, erofs_image({b"b/y/z": file(b"")})])
    readers = [layer.device(0) for layer in layers]
    listings = Listings(MergedTree(layers), 10)

    async def listed(node: int) -> list[int]:
        answer = await listings.with_attributes(NodeId(node), request(NodeId(node), 0, 7))
        return [inode for inode, _, kind in entries_in(bytes(answer)) if kind == stat.S_IFDIR >> 12]

    first, *others = await listed(ROOT_NODE)
    assert others
    await listed(first)  # now he walks
    for reader in readers:
        assert isinstance(reader, MemoryReader)
        reader.hesitant = True
    while await listings.prepare():
        assert not any(reader.reads for reader in readers if isinstance(reader, MemoryReader))
    for other in others:
        await listed(other)
    assert any(reader.reads for reader in readers if isinstance(reader, MemoryReader))


async def test_the_end_is_known_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    lower = erofs_image({b"plain/%d" % n: file(b"") for n in range(300)} | {b"both/x": file(b"")})
    tree = MergedTree(await open_layers([lower, erofs_image({b"both/y": file(b"")})]))
    listings = Listings(tree, 10)
    directory = ROOT_NODE
    for name, count in ((b"plain", 300), (b"both", 2)):
        directory = await tree.lookup(ROOT_NODE, name)
        position, listed = 0, 0
        while position != END:
            message = request(directory, position, 7)
            entries = entries_in(bytes(await listings.with_attributes(directory, message)))
            listed += len(entries)
            position = entries[-1][1]
        assert listed == count
        assert not await tree.entries(directory, END_POSITION)
    monkeypatch.setattr(tree, "entries", None)  # it is not asked
    for answer in (listings.with_attributes, listings.names):
        assert await answer(directory, request(directory, END, 7)) == b""


@pytest.fixture
def tree() -> MemoryTree:
    tree = MemoryTree()
    for name in "abcdefgh":
        tree.add(name, stat.S_IFDIR | 0o755)
        tree.add(f"{name}/file", stat.S_IFREG | 0o644)
    return tree


async def test_a_walk_finds_them_made(tree: MemoryTree):
    listings = Listings(tree, 10)
    for directory in [ROOT_NODE, *tree.nodes[ROOT_NODE].children.values()]:
        answer = b"first"
        position = 0
        while answer:
            before = tree.calls["entries"]
            answer = bytes(
                await listings.with_attributes(directory, request(directory, position, 7))
            )
            if position or directory > 3:  # the second folder shows that he walks
                assert tree.calls["entries"] == before
            while await listings.prepare():
                pass
            entries = entries_in(answer)
            position = entries[-1][1] if entries else 0


@pytest.mark.parametrize("curious", [False, True])
async def test_what_finds_no_room_is_not_passed_over(curious: bool):
    tree = MemoryTree()
    for name in ("a" * 255, "b"):
        tree.add(name, stat.S_IFREG | 0o644)
    listings = Listings(tree, 10)
    if curious:
        listings.curious.lists(7, ROOT_NODE)
        listings.curious.looks_up(7, ROOT_NODE)
    answer = bytes(await listings.with_attributes(ROOT_NODE, request(ROOT_NODE, 0, 7)))
    assert len(answer) == 2 * 160
    answer = bytes(await listings.with_attributes(ROOT_NODE, request(ROOT_NODE, 2, 7)))
    assert [inode for inode, _, _ in entries_in(answer)] == [2, 3]


async def test_a_tree_that_grows_is_listed_when_it_is_asked_for(tree: MemoryTree):
    tree.grows = True
    listings = Listings(tree, 10)
    await listings.with_attributes(ROOT_NODE, request(ROOT_NODE, 0, 7))
    assert not await listings.prepare()


async def test_what_is_broken_fails_when_it_is_asked_for(tree: MemoryTree):
    listings = Listings(tree, 10)
    await listings.with_attributes(ROOT_NODE, request(ROOT_NODE, 0, 7))
    first, second, *_ = tree.nodes[ROOT_NODE].children.values()
    await listings.with_attributes(first, request(first, 0, 7))
    del tree.nodes[second]
    while await listings.prepare():
        pass
    with pytest.raises(KeyError):
        await listings.with_attributes(second, request(second, 0, 7))
