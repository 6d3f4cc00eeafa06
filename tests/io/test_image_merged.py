"""Stacked layers as one tree: what unpacking them one over the other would give."""

import random
import stat

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import lazyfs.image.erofs_layer
import lazyfs.image.merged
from lazyfs.errors import (
    LazyfsError,
    NoSuchEntryError,
    NotADirectoryNodeError,
    NotAFileNodeError,
    NotASymlinkNodeError,
)
from lazyfs.image.merged import MergedTree
from lazyfs.model import ROOT_NODE, DirectoryEntry, NodeId
from tests.support.layer_builder import directory, file, hard_link, whiteout
from tests.support.layer_stacks import (
    compare,
    compare_object,
    images_of,
    names_in,
    open_layers,
    random_stack,
    unpack,
)

seeds = st.integers(0, 1 << 32)


@given(seeds, st.integers(1, 5), st.booleans())
@settings(max_examples=60)
def test_a_stack_is_what_unpacking_it_gives(seed: int, count: int, hesitant: bool):
    stack = random_stack(random.Random(seed), count)

    async def main() -> None:
        tree = MergedTree(await open_layers(images_of(stack), hesitant=hesitant))
        wanted = unpack(stack)
        nodes = await compare(tree, wanted)
        assert nodes.keys() == wanted.walk().keys()
        for path, seen in wanted.walk().items():
            if not stat.S_ISDIR(seen.node.kind):
                with pytest.raises(NotADirectoryNodeError):
                    await tree.lookup(nodes[path], b"a")
                with pytest.raises(NotADirectoryNodeError):
                    await tree.entries(nodes[path], 0)
            else:
                for name in (b"absent", b".", b"..", b"", b"a" * 300):
                    with pytest.raises(NoSuchEntryError):
                        await tree.lookup(nodes[path], name)
                with pytest.raises(NotAFileNodeError):
                    await tree.read(nodes[path], 0, 1)
            if seen.node.kind != stat.S_IFLNK:
                with pytest.raises(NotASymlinkNodeError):
                    await tree.link_target(nodes[path])

    trio.run(main)


@given(seeds, st.integers(1, 4))
@settings(max_examples=30)
def test_node_ids_outlive_the_daemon(seed: int, count: int):
    stack = random_stack(random.Random(seed), count)

    async def main() -> None:
        layers = await open_layers(images_of(stack))
        wanted = unpack(stack)
        nodes = await compare(MergedTree(layers), wanted)
        for path, seen in wanted.walk().items():
            # Each the first thing that the new daemon is asked.
            await compare_object(MergedTree(layers), nodes[path], seen, path)
        again = MergedTree(layers)
        items = list(wanted.walk().items())
        random.Random(seed).shuffle(items)
        for path, seen in items:
            await compare_object(again, nodes[path], seen, path)

    trio.run(main)


@given(seeds, st.integers(2, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=30)
def test_small_memories_change_nothing(seed: int, count: int, stacks: int, listed: int):
    stack = random_stack(random.Random(seed), count)

    async def main() -> None:
        tree = MergedTree(await open_layers(images_of(stack), hesitant=True))
        wanted = unpack(stack)
        nodes = await compare(tree, wanted)
        # All at once, so that each makes the others forget.
        async with trio.open_nursery() as nursery:
            for path, seen in wanted.walk().items():
                nursery.start_soon(compare_object, tree, nodes[path], seen, path)
        assert len(tree._stacks) <= stacks
        assert len(tree._listings) <= listed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazyfs.image.merged, "MAX_STACKS", stacks)
        patch.setattr(lazyfs.image.merged, "MAX_LISTED", listed)
        patch.setattr(lazyfs.image.merged, "BATCH", 2)
        patch.setattr(lazyfs.image.erofs_layer, "MAX_INODES", 1)
        trio.run(main)


@pytest.mark.parametrize("layers", [1, 2, 3])
async def test_a_listing_goes_on_from_anywhere(layers: int):
    """Also over many blocks and batches, and in a new daemon."""
    stack = [{b"d": directory()} for _ in range(layers)]
    for number in range(1000):
        stack[number % layers][b"d/%04d" % number] = file(b"")
        if layers > 1 and number % 7 == 0:
            stack[-1][b"d/%04d" % number] = whiteout()
    images = await open_layers(images_of(stack))
    tree = MergedTree(images)
    node = await tree.lookup(ROOT_NODE, b"d")
    entries: list[DirectoryEntry] = []
    while batch := await tree.entries(node, entries[-1].next_position if entries else 0):
        entries += batch
    assert {entry.name for entry in entries} == set(unpack(stack).children[b"d"].children)
    assert len(entries) == len({entry.name for entry in entries})
    for index in (0, 1, 254, 255, 256, 257, 500, len(entries) - 2, len(entries) - 1):
        rest: list[DirectoryEntry] = []
        position = entries[index].next_position
        fresh = MergedTree(images)
        while batch := await fresh.entries(node, position):
            rest += batch
            position = batch[-1].next_position
        assert rest == entries[index + 1 :]
    assert list(await tree.entries(node, entries[-1].next_position)) == []
    assert list(await tree.entries(node, 1 << 40)) == []


async def test_directories_seen_in_listings_are_found_however_deep_they_lie(monkeypatch):
    """Nobody has looked any of them up, and their listings are forgotten."""
    monkeypatch.setattr(lazyfs.image.merged, "MAX_STACKS", 2)
    monkeypatch.setattr(lazyfs.image.merged, "MAX_LISTED", 1)
    depth = 1500
    path = b"/".join([b"d"] * depth)
    stack = [{path: directory()}, {path: directory(), path + b"/x": file(b"deep")}]
    tree = MergedTree(await open_layers(images_of(stack)))
    node = ROOT_NODE
    for _ in range(depth):
        ((node, kind),) = (await names_in(tree, node)).values()
        assert kind == stat.S_IFDIR
    for asked in (tree, MergedTree(tree._layers)):
        assert (await asked.attributes(node)).nlink == 1
        file_node = await asked.lookup(node, b"x")
        assert await asked.read(file_node, 0, 10) == b"deep"


async def test_a_tree_deeper_than_any_path_is_refused_when_it_must_be_climbed(monkeypatch):
    monkeypatch.setattr(lazyfs.image.merged, "MAX_DEPTH", 10)
    path = b"/".join([b"d"] * 12)
    tree = MergedTree(await open_layers(images_of([{path: directory()}])))
    node = ROOT_NODE
    for _ in range(12):
        node = await tree.lookup(node, b"d")
    await tree.attributes(node)
    with pytest.raises(LazyfsError, match="deeper than 10"):
        await MergedTree(tree._layers).attributes(node)


async def test_attributes_of_the_overlay_itself_are_hidden():
    xattrs = {b"trusted.overlay.origin": b"x", b"trusted.other": b"y", b"user.z": b""}
    stack = [{b"d/f": file(b"1")}, {b"d": directory(opaque=True, xattrs=xattrs)}]
    tree = MergedTree(await open_layers(images_of(stack)))
    node = await tree.lookup(ROOT_NODE, b"d")
    assert await tree.xattrs(node) == {b"trusted.other": b"y", b"user.z": b""}
    assert await names_in(tree, node) == {}


async def test_hard_links_are_one_node_and_files_of_other_layers_are_not():
    stack = [
        {b"f": file(b"1"), b"d/hard": hard_link(b"f")},
        {b"other": file(b"1"), b"d": directory()},
    ]
    tree = MergedTree(await open_layers(images_of(stack)))
    node = await tree.lookup(ROOT_NODE, b"f")
    folder = await tree.lookup(ROOT_NODE, b"d")
    assert await tree.lookup(folder, b"hard") == node
    assert (await names_in(tree, folder))[b"hard"][0] == node
    assert (await tree.attributes(node)).nlink == 2
    assert await tree.lookup(ROOT_NODE, b"other") != node


async def test_a_stack_of_five_hundred_layers():
    stack = [
        {
            b"d/%d" % n: file(b"%d" % n),
            b"same": file(b"%d" % n),
            b"d": directory(mode=0o700 + n % 8),
        }
        for n in range(500)
    ]
    tree = MergedTree(await open_layers(images_of(stack)))
    node = await tree.lookup(ROOT_NODE, b"d")
    assert len(await names_in(tree, node)) == 500
    assert (await tree.attributes(node)).mode & 0o777 == 0o700 + 499 % 8
    same = await tree.lookup(ROOT_NODE, b"same")
    assert await tree.read(same, 0, 10) == b"499"
    assert await MergedTree(tree._layers).read(same, 0, 10) == b"499"


@pytest.mark.parametrize("node", [1 << 51, 5 << 51, (1 << 63) - 1, (1 << 64) - 1, 2, 3, 77])
async def test_a_node_id_that_nobody_gave_out_is_an_error_of_ours(node: int):
    tree = MergedTree(await open_layers(images_of([{b"d/x": file(b"")}, {b"d/y": file(b"")}])))
    for question in (
        tree.attributes(NodeId(node)),
        tree.entries(NodeId(node), 0),
        tree.lookup(NodeId(node), b"x"),
        tree.read(NodeId(node), 0, 1),
        tree.xattrs(NodeId(node)),
        tree.link_target(NodeId(node)),
    ):
        with pytest.raises(LazyfsError):
            await question
