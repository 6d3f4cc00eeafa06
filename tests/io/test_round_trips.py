"""How many round trips, one after the other, stand between the name of an image and its root."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from lazyfs.interfaces import ImageTree
from lazyfs.model import ROOT_NODE
from lazyfs.mount.assemble import open_image
from lazyfs.mount.options import MountOptions
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer, erofs_image, file
from tests.support.layer_layouts import Layout, write_image
from tests.support.layer_rig import noise
from tests.support.tick_registry import NAME, TickRegistry

pytestmark = pytest.mark.usefixtures("no_threads")

CHUNK = 16 << 10
LAYERS = (1, 3, 40)
DIFF_ID = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    """Of 40 chunks each, so that their tables are far from their beginnings."""
    return [build.seekable(some_image(number, 40 * CHUNK), CHUNK) for number in range(max(LAYERS))]


def some_image(number: int, data_bytes: int) -> bytes:
    files = {b"dir/%03d" % name: file(b"%d" % number) for name in range(300)}
    return erofs_image(files | {b"large": file(noise(data_bytes, number))})


@pytest.fixture
def options(tmp_path: Path) -> MountOptions:
    return MountOptions(cache_dir=tmp_path / "cache", timeout_s=600)


def serve(
    layout: Layout, patch: pytest.MonkeyPatch, *, handshake: int = 0, **how: Any
) -> TickRegistry:
    server = TickRegistry(layout, handshake=handshake, **how)
    server.install(patch)
    return server


def write_layers(folder: Path, layers: Sequence[Layer]) -> Layout:
    return write_image(folder / "layout", layers, [DIFF_ID] * len(layers))


async def list_root(tree: ImageTree) -> set[bytes]:
    names: set[bytes] = set()
    position = 0
    while entries := await tree.entries(ROOT_NODE, position):
        for entry in entries:
            await tree.attributes(entry.node)
            names.add(entry.name)
        position = entries[-1].next_position
    return names


async def opened_and_listed(options: MountOptions) -> tuple[float, float]:
    """After how many round trips the image is open, and its root listed."""
    began = trio.current_time()
    async with open_image(NAME, options) as opened:
        at_open = trio.current_time() - began
        assert await list_root(opened.tree) == {b"dir", b"large"}
        return at_open, trio.current_time() - began


@pytest.mark.parametrize("count", LAYERS)
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, 2),  # manifest; tables with the layers' beginnings
        ({"token": True}, 4),  # refused, token before that
        ({"token": True, "index": True}, 5),
        ({"storage": True}, 3),  # the tables are elsewhere
    ],
    ids=["open", "token", "token-and-index", "storage"],
)
async def test_no_more_than_five_whatever_the_number_of_layers(
    layers: list[Layer],
    options: MountOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    count: int,
    how: dict[str, bool],
    expected: int,
):
    layout = write_layers(tmp_path, layers[:count])
    server = serve(layout, monkeypatch, **how)
    assert await opened_and_listed(options) == (expected, expected)
    assert server.body_bytes < sum(len(layer.blob) for layer in layers[:count]) / 5
    assert len(server.requests) <= 4 + (1 + how.get("storage", False)) * 2 * count


async def test_an_image_that_is_known_costs_the_question_what_its_tag_means(
    layers: list[Layer],
    options: MountOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
):
    server = serve(write_layers(tmp_path, layers[:3]), monkeypatch)
    await opened_and_listed(options)
    server.requests.clear()
    assert await opened_and_listed(options) == (1, 1)
    assert server.requests == ["/v2/some/image/manifests/app"]


async def test_short_layers_come_by_one_request_each(
    options: MountOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
):
    short = [build.seekable(some_image(number, 1000), CHUNK) for number in range(5)]
    server = serve(write_layers(tmp_path, short), monkeypatch)
    assert await opened_and_listed(options) == (2, 2)
    assert len(server.requests) == 1 + len(short)


async def test_the_layout_with_the_tree_among_the_chunks_costs_one_more(
    options: MountOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
):
    chunk = 64 << 10
    spec = [build.spec_seekable(some_image(number, 10 * chunk), chunk) for number in range(3)]
    serve(write_layers(tmp_path, spec), monkeypatch, token=True, index=True)
    assert await opened_and_listed(options) == (6, 6)
