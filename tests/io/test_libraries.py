"""Libraries come when a program begins to be read, by both drivers; nothing else does."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from lazyfs.erofs.extents import Extent
from lazyfs.image.nodes import place_of
from lazyfs.image.tracing import Route, follow
from lazyfs.layer.likely import FORESEEN_BYTES
from lazyfs.layer.line import Line
from lazyfs.model import ByteRange, NodeId
from lazyfs.mount.assemble import OpenedImage, open_image
from lazyfs.mount.libraries import C_LIBRARY, INTERPRETERS
from lazyfs.mount.options import MountOptions
from lazyfs.profile.document import BlockRun, Profile, encode_profile
from lazyfs.resolve import resolve_image
from registry.transports import open_source
from tests.support import layer_builder as build
from tests.support.elf_files import elf_file
from tests.support.layer_builder import Node, erofs_image, file, link
from tests.support.layer_layouts import write_image
from tests.support.layer_rig import noise
from tests.support.settled import wait_all_settled

CHUNK = 16 << 10
FAR = 2 << 20
"""What lies further away is not fetched along with something."""

LIBRARIES = "usr/lib/x86_64-linux-gnu/"


def apart(*files: tuple[str, Node]) -> dict[bytes, Node]:
    """Files whose data lie far from each other."""
    nodes: dict[bytes, Node] = {}
    for number, (path, node) in enumerate(files):
        nodes[path.encode()] = node
        nodes[b"%s.apart" % path.encode()] = file(noise(FAR, number))
    return nodes


def library(*needed: bytes, size: int = 4 * CHUNK, relocations: int = 0, number: int = 0) -> Node:
    """One that differs from those of another number."""
    data = bytearray(noise(size, 100 + number))
    made = elf_file(needed, size, relocations=relocations)
    data[: 2 * CHUNK], data[-CHUNK:] = made[: 2 * CHUNK], made[-CHUNK:]
    return file(bytes(data))


def program(*needed: bytes) -> Node:
    return file(elf_file(needed, interpreter=b"/lib64/ld.so"))


TREE = apart(
    ("bin/program", program(b"liba.so.1", b"libnowhere.so", b"libround.so")),
    ("usr/lib/ld-1.so", library()),
    (LIBRARIES + "liba.so.1.0", library(b"libb.so", b"liba.so.1", number=1)),
    ("opt/libb.so", library(number=2)),
    ("opt/other.so", library(number=3)),
    ("etc/ld.so.cache", file(noise(5000))),
) | {
    b"lib": link(b"usr/lib"),
    b"lib64": link(b"usr/lib"),
    b"usr/lib/ld.so": link(b"ld-1.so"),
    LIBRARIES.encode() + b"liba.so.1": link(b"liba.so.1.0"),
    LIBRARIES.encode() + b"libb.so": link(b"/opt/libb.so"),
    LIBRARIES.encode() + b"libround.so": link(b"libround.so"),
}
EXPECTED = {
    "usr/lib/ld-1.so": True,
    LIBRARIES + "liba.so.1.0": True,
    "opt/libb.so": True,
    "etc/ld.so.cache": True,
    "opt/other.so": False,
}


@pytest.fixture
def options(tmp_path: Path) -> MountOptions:
    return MountOptions(cache_dir=tmp_path / "cache", prefetch="guess")


async def node_at(image: OpenedImage, path: str) -> NodeId:
    route = Route()
    await follow(image.tree, path.encode(), route)
    assert route.node is not None
    return route.node


async def data_of(image: OpenedImage, path: str) -> tuple[int, ByteRange]:
    """Which layer has the data of a file, and where."""
    place = place_of(await node_at(image, path))
    layer = image.explainer.layers[place.layer]
    inode = await layer.inode(place.nid)
    (run,) = await layer.run(layer.image.extents(inode, 0, inode.size_bytes))
    assert isinstance(run, Extent)
    return place.layer, ByteRange(run.address, run.length)


async def is_here(image: OpenedImage, path: str, at: int = 0) -> bool:
    """Whether a byte of a file is in the store; counted from its end if negative."""
    number, where = await data_of(image, path)
    chunks = image.explainer.reports[number].opened.chunks
    assert chunks is not None
    index = chunks.table.index_at(where.offset + (at if at >= 0 else where.length + at))
    return image.explainer.store.contains(chunks.piece(index).key)


async def by_fuse(image: OpenedImage, path: str) -> None:
    await image.tree.read(await node_at(image, path), 0, 4096)


async def by_kernel(image: OpenedImage, path: str) -> None:
    number, where = await data_of(image, path)
    files = image.layer_files.tree
    node = await files.lookup(NodeId(1), b"%d.erofs" % number)
    await files.read(node, where.offset, 4096)


def opened(folder: Path, options: MountOptions, *trees: dict[bytes, Node]):
    layers = [build.seekable(erofs_image(tree), CHUNK) for tree in trees]
    name = write_image(folder / "layout", layers, ["sha256:" + "a" * 64] * len(layers)).name
    return open_image(name, options)


@pytest.mark.parametrize("read", [by_fuse, by_kernel])
async def test_what_a_program_needs_comes_and_what_that_needs(
    read: Callable[[OpenedImage, str], Awaitable[None]], tmp_path: Path, options: MountOptions
):
    async with opened(tmp_path, options, TREE) as image:
        assert isinstance(image, OpenedImage)
        await wait_all_settled()
        assert not any([await is_here(image, path) for path in EXPECTED])
        await read(image, "bin/program")
        await wait_all_settled()
        assert {path: await is_here(image, path) for path in EXPECTED} == EXPECTED
        assert await is_here(image, LIBRARIES + "liba.so.1.0", -1)
        totals = (await image.status())["totals"]
        assert isinstance(totals, dict)
        assert 0 < totals["guessed_bytes"] < totals["fetched_bytes"]
        assert totals["errors"] == 0


async def test_libraries_of_other_layers_come_too(tmp_path: Path, options: MountOptions):
    lower = {path: node for path, node in TREE.items() if not path.startswith(b"bin")}
    upper = apart(("bin/program", program(b"liba.so.1")))
    async with opened(tmp_path, options, lower, upper) as image:
        assert isinstance(image, OpenedImage)
        await by_fuse(image, "bin/program")
        await wait_all_settled()
        assert {path: await is_here(image, path) for path in EXPECTED} == EXPECTED


async def test_tables_and_what_is_written_come_and_the_middle_does_not(
    tmp_path: Path, options: MountOptions
):
    large = library(size=8 * FAR, relocations=FAR)
    tree = apart(("bin/program", program(b"liba.so")), (LIBRARIES + "liba.so", large))
    async with opened(tmp_path, options, tree) as image:
        assert isinstance(image, OpenedImage)
        await by_fuse(image, "bin/program")
        await wait_all_settled()
        path = LIBRARIES + "liba.so"
        assert [await is_here(image, path, at * FAR) for at in (0, 1, 3, 5)] == [1, 1, 0, 0]
        assert await is_here(image, path, -1)


async def test_files_that_are_no_programs_cost_nothing(tmp_path: Path, options: MountOptions):
    broken = elf_file([b"liba.so.1"])[:100]
    tree = TREE | apart(("bin/broken", file(broken)), ("bin/script", file(b"#!/bin/program\n")))
    async with opened(tmp_path, options, tree) as image:
        assert isinstance(image, OpenedImage)
        for path in ("bin/broken", "bin/script", "bin/program.apart"):
            await by_fuse(image, path)
        await wait_all_settled()
        assert not any([await is_here(image, path) for path in EXPECTED])


async def test_without_guesses_nothing_comes(tmp_path: Path, options: MountOptions):
    async with opened(tmp_path, replace(options, prefetch="none"), TREE) as image:
        assert isinstance(image, OpenedImage)
        await by_fuse(image, "bin/program")
        await wait_all_settled()
        assert not any([await is_here(image, path) for path in EXPECTED])


async def test_who_reads_all_programs_fetches_little_more_than_those(
    tmp_path: Path, options: MountOptions
):
    size = FORESEEN_BYTES // 4
    large = [library(size=size, relocations=size, number=number) for number in range(8)]
    tree = apart(
        ("bin/program", program(*[b"lib%d.so" % number for number in range(8)])),
        *[(f"{LIBRARIES}lib{number}.so", node) for number, node in enumerate(large)],
    )
    async with opened(tmp_path, options, tree) as image:
        assert isinstance(image, OpenedImage)
        await by_fuse(image, "bin/program")
        await wait_all_settled()
        totals = (await image.status())["totals"]
        assert isinstance(totals, dict)
        assert FORESEEN_BYTES // 2 < totals["guessed_bytes"] <= FORESEEN_BYTES


async def test_programs_read_while_a_profile_is_looked_for_are_looked_into_later(
    tmp_path: Path, options: MountOptions
):
    async with opened(tmp_path, replace(options, prefetch="profile"), TREE) as image:
        assert isinstance(image, OpenedImage)
        await by_fuse(image, "bin/program")
        with trio.fail_after(60):
            while not await is_here(image, "opt/libb.so"):
                await wait_all_settled()
        assert not await is_here(image, "opt/other.so")


@pytest.fixture
def behind_a_long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "is_long", property(lambda line: True))
    machine = SimpleNamespace(machine="x86_64")
    monkeypatch.setattr("lazyfs.mount.libraries.os", SimpleNamespace(uname=lambda: machine))


COMMON_LIBRARIES = (
    INTERPRETERS["x86_64"][1].decode()[1:],
    LIBRARIES + C_LIBRARY.decode(),
    LIBRARIES + "libmore.so",
    "usr/lib/libother.so",
)
COMMON = apart(
    *(
        (path, library(*needed, number=number))
        for number, (path, needed) in enumerate(
            zip(COMMON_LIBRARIES, ([], [b"libmore.so"], [], []), strict=True), 4
        )
    )
)


@pytest.mark.usefixtures("behind_a_long_line")
async def test_behind_a_long_line_what_all_programs_need_comes_before_any_is_read(
    tmp_path: Path, options: MountOptions
):
    async with opened(tmp_path, options, COMMON) as image:
        assert isinstance(image, OpenedImage)
        await wait_all_settled()
        assert [await is_here(image, path, -1) for path in COMMON_LIBRARIES] == [1, 1, 1, 0]


@pytest.mark.usefixtures("behind_a_long_line")
async def test_images_without_such_an_interpreter_cost_nothing(
    tmp_path: Path, options: MountOptions
):
    other = {path: node for path, node in COMMON.items() if not path.startswith(b"lib64/")}
    async with opened(tmp_path, options, other) as image:
        assert isinstance(image, OpenedImage)
        await wait_all_settled()
        assert not any([await is_here(image, path, -1) for path in COMMON_LIBRARIES[1:]])


@pytest.mark.usefixtures("behind_a_long_line")
async def test_where_a_profile_has_brought_what_is_wanted_nothing_of_that_comes(
    tmp_path: Path, options: MountOptions
):
    layer = build.seekable(erofs_image(COMMON), CHUNK)
    name = write_image(tmp_path / "layout", [layer], ["sha256:" + "a" * 64]).name
    async with open_source(name) as source:
        resolved = await resolve_image(source, None)
    digests = tuple(str(descriptor.digest) for descriptor in resolved.manifest.layers)
    path = tmp_path / "app.profile"
    blocks = (BlockRun(0, 0, 1),)
    path.write_bytes(
        encode_profile(Profile(str(resolved.descriptor.digest), digests, 1, blocks, ()))
    )
    async with open_image(name, replace(options, prefetch="profile", profile=path)) as image:
        assert isinstance(image, OpenedImage)
        await wait_all_settled()
        profile = (await image.status())["profile"]
        assert isinstance(profile, dict)
        assert profile["state"] == "done"
        assert not any([await is_here(image, path, -1) for path in COMMON_LIBRARIES])
