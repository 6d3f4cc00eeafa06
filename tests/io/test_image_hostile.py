"""Images that no one could have made in good faith: answered or refused, and nothing else hurt."""

import stat
from contextlib import suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import lazyfs.image.merged
from lazyfs.errors import ImageFormatError, LazyfsError, NoSuchEntryError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.merged import MergedTree
from lazyfs.image.nodes import Place, node_of
from lazyfs.image.single import SingleTree
from lazyfs.model import ROOT_NODE, DirectoryEntry, Nid, NodeId
from tests.support.erofs_files import sealed
from tests.support.layer_builder import device, directory, erofs_image, file, link, whiteout
from tests.support.layer_stacks import names_in, nid_of, open_layers, repointed

IMAGE = erofs_image(
    {
        b"a/b/c": directory(),
        b"a/b/f": file(b"content"),
        b"a/w": whiteout(),
        b"a/dev": device(5, 1),
        b"other/g": file(b"more"),
        b"l": link(b"a"),
    }
)
LOWER = erofs_image({b"a/b/c/low": file(b"low"), b"a/w": file(b"hidden"), b"other": directory()})
DIRECTORY, REGULAR, DEVICE = 2, 1, 3


async def tree_of(image: bytes) -> MergedTree:
    return MergedTree(await open_layers([LOWER, image]))


async def at(tree: MergedTree, path: bytes) -> NodeId:
    node = ROOT_NODE
    for name in path.split(b"/"):
        node = await tree.lookup(node, name)
    return node


LOOPS = {
    "the root": (b"a/b", b"c", b""),
    "the parent": (b"a/b", b"c", b"a/b"),
    "above the parent": (b"a/b", b"c", b"a"),
    "elsewhere": (b"a/b", b"c", b"other"),
}


@pytest.mark.parametrize("name", LOOPS)
async def test_a_directory_where_it_does_not_belong_is_refused(name: str):
    folder, entry, target = LOOPS[name]
    image = repointed(IMAGE, folder, entry, nid_of(IMAGE, target))
    tree = await tree_of(image)
    parent = await at(tree, folder)
    child, kind = (await names_in(tree, parent))[entry]
    for shown in (tree, SingleTree(tree._layers[1])):
        listed = DirectoryEntry(entry, child, kind, 1)
        assert await shown.listed_directory(parent, listed) is None
    sound = await at(tree, b"a/b")
    listed = DirectoryEntry(b"b", sound, stat.S_IFDIR, 1)
    above = await at(tree, b"a")
    assert await tree.listed_directory(above, listed) == await tree.attributes(sound)
    with pytest.raises(ImageFormatError, match="belongs in"):
        await tree.lookup(parent, entry)
    assert await tree.read(await at(tree, b"a/b/f"), 0, 99) == b"content"
    # As if the kernel remembered it from before.
    node = node_of(Place(1, Nid(nid_of(image, target) or 1)))
    fresh = MergedTree(tree._layers)
    if target and target != b"a/b":
        assert await names_in(fresh, node) == await names_in(tree, await at(tree, target))
    assert await fresh.read(await at(fresh, b"a/b/f"), 0, 99) == b"content"


@pytest.mark.parametrize("target", [b"", b"a/b/c", b"a/b", b"other"])
async def test_two_dots_that_lead_astray_end_somewhere(target: bytes):
    image = repointed(IMAGE, b"a/b", b"..", nid_of(IMAGE, target))
    tree = await tree_of(image)
    node = node_of(Place(1, Nid(nid_of(IMAGE, b"a/b/c"))))
    with pytest.raises(ImageFormatError):
        await tree.attributes(node)
    with pytest.raises(ImageFormatError):
        await at(tree, b"a/b")
    assert await names_in(tree, await at(tree, b"other"))


async def test_two_dots_in_a_circle_end_at_the_limit(monkeypatch):
    monkeypatch.setattr(lazyfs.image.merged, "MAX_DEPTH", 50)
    image = erofs_image({b"x/y/x": directory(), b"x/y/z": directory()})
    x, y = nid_of(image, b"x"), nid_of(image, b"x/y")
    image = repointed(image, b"x/y", b"x", x)  # y shows x, which is said to be in it
    image = repointed(image, b"x", b"..", y)
    tree = MergedTree(await open_layers([LOWER, image]))
    for nid in (x, y):
        with pytest.raises(ImageFormatError, match="deeper than 50"):
            await tree.attributes(node_of(Place(1, Nid(nid))))


@pytest.mark.parametrize("nid", [1 << 40, (1 << 49) + 7, 3])
async def test_an_entry_to_nowhere_harms_nobody_else(nid: int):
    tree = await tree_of(repointed(IMAGE, b"a/b", b"f", nid))
    node = await at(tree, b"a/b")
    names = await names_in(tree, node)
    assert set(names) == {b"c", b"f"}
    with pytest.raises(LazyfsError):
        await tree.lookup(node, b"f")
    with pytest.raises(LazyfsError):
        await tree.attributes(names[b"f"][0])
    assert set(await names_in(tree, await tree.lookup(node, b"c"))) == {b"low"}


@pytest.mark.parametrize("nid", [1 << 50, (1 << 63) - 1, 1 << 62])
async def test_an_entry_beyond_all_images_breaks_its_directory_only(nid: int):
    tree = await tree_of(repointed(IMAGE, b"a/b", b"f", nid))
    node = await at(tree, b"a/b")
    with pytest.raises(ImageFormatError):
        await names_in(tree, node)
    assert set(await names_in(tree, await tree.lookup(node, b"c"))) == {b"low"}


async def test_a_broken_whiteout_is_shown_and_not_followed():
    tree = await tree_of(repointed(IMAGE, b"a", b"w", 1 << 40))
    node = await at(tree, b"a")
    assert set(await names_in(tree, node)) == {b"b", b"dev", b"w"}
    with pytest.raises(LazyfsError):
        await tree.lookup(node, b"w")


@pytest.mark.parametrize(("said", "path"), [(REGULAR, b"b"), (DEVICE, b"b")])
async def test_an_entry_that_lies_about_its_type_is_refused(said: int, path: bytes):
    tree = await tree_of(repointed(IMAGE, b"a", path, nid_of(IMAGE, b"a/" + path), said))
    node = await at(tree, b"a")
    with pytest.raises(ImageFormatError, match="its entry says"):
        await tree.lookup(node, path)
    for _ in range(2):
        child = (await names_in(tree, node))[path][0]
        with pytest.raises(ImageFormatError):
            await names_in(tree, child)


async def test_entries_without_a_type_are_what_their_inodes_are():
    image = IMAGE
    for name in (b"b", b"w", b"dev"):
        image = repointed(image, b"a", name, nid_of(IMAGE, b"a/" + name), 0)
    tree = await tree_of(image)
    node = await at(tree, b"a")
    names = await names_in(tree, node)
    assert set(names) == {b"b", b"dev"}
    with pytest.raises(NoSuchEntryError):
        await tree.lookup(node, b"w")
    for child in (names[b"b"][0], await tree.lookup(node, b"b")):
        assert set(await names_in(tree, child)) == {b"c", b"f"}
    fresh = MergedTree(tree._layers)
    assert set(await names_in(fresh, names[b"b"][0])) == {b"c", b"f"}


async def test_a_merged_directory_of_too_many_entries_is_refused(monkeypatch):
    monkeypatch.setattr(lazyfs.image.merged, "MAX_MERGED_ENTRIES", 100)
    many = erofs_image({b"a/%d" % n: file(b"") for n in range(101)} | {b"other/x": file(b"")})
    tree = MergedTree(await open_layers([LOWER, many]))
    with pytest.raises(ImageFormatError, match="more than 100 entries"):
        await names_in(tree, await at(tree, b"a"))
    assert set(await names_in(tree, await at(tree, b"other"))) == {b"x"}


async def test_reading_a_huge_directory_lets_others_have_their_turn():
    many = erofs_image({b"a/%05d" % n: file(b"") for n in range(20_000)})
    tree = MergedTree(await open_layers([LOWER, many]))
    node = await at(tree, b"a")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await tree.entries(node, 0)
        nursery.cancel_scope.cancel()
    assert turns > 50


async def test_a_single_image_shows_itself_as_it_is():
    image = erofs_image({b"d": directory(opaque=True), b"w": whiteout(), b"d/f": file(b"x")})
    (layer,) = await open_layers([image])
    tree = SingleTree(layer)
    names = {entry.name: entry for entry in await tree.entries(ROOT_NODE, 0)}
    assert set(names) == {b"d", b"w"}
    assert (await tree.xattrs(names[b"d"].node))[b"trusted.overlay.opaque"] == b"y"
    node = await tree.lookup(names[b"d"].node, b"f")
    assert await tree.read(node, 0, 10) == b"x"
    for name in (b".", b"..", b"absent"):
        with pytest.raises(NoSuchEntryError):
            await tree.lookup(ROOT_NODE, name)


@given(st.lists(st.tuples(st.integers(0, len(IMAGE) - 1), st.integers(1, 255)), max_size=6))
@settings(max_examples=300)
def test_a_damaged_layer_gives_only_errors_of_ours(damage: list[tuple[int, int]]):
    image = bytearray(IMAGE)
    for place, change in damage:
        image[place] ^= change
    broken = sealed(image) if damage else bytes(image)

    async def main() -> None:
        try:
            layers = await open_layers([LOWER, broken])
        except LazyfsError:
            return
        with trio.fail_after(60):  # a walk without an end is the failure looked for
            await survey(MergedTree(layers))
            await survey(SingleTree(layers[1]))

    trio.run(main)


async def survey(tree: MergedTree | SingleTree) -> None:
    """Ask everything of everything, to a limit."""
    pending = [ROOT_NODE]
    seen: set[NodeId] = set()
    while pending and len(seen) < 100:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        for question in (tree.attributes, tree.link_target, tree.xattrs):
            with suppress(LazyfsError):
                await question(node)
        with suppress(LazyfsError):
            await tree.read(node, 0, 100)
        position = 0
        with suppress(LazyfsError):
            while entries := await tree.entries(node, position):
                position = entries[-1].next_position
                for entry in entries:
                    pending.append(entry.node)
                    with suppress(LazyfsError):
                        pending.append(await tree.lookup(node, entry.name))


async def test_a_layer_without_the_device_it_needs_says_so():
    layer = ErofsLayer(0, [], None)  # type: ignore[arg-type]
    with pytest.raises(LazyfsError, match="data on device 0, the image was given -1"):
        await layer.open()
