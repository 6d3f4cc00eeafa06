"""From an image's name to its tree and its status, without a mount."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import lazyfs.mount.report
from lazyfs.errors import LazyfsError, MountError, PlanError
from lazyfs.image.merged import MergedTree
from lazyfs.image.single import SingleTree
from lazyfs.interfaces import ImageTree
from lazyfs.model import ROOT_NODE, VerifyMode
from lazyfs.mount.assemble import open_image
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import MountOptions
from tests.support import layer_builder as build
from tests.support.erofs_files import golden_devices
from tests.support.layer_builder import Layer, erofs_image, file, whiteout
from tests.support.layer_layouts import flip, write_image
from tests.support.layer_rig import noise

LOWER = erofs_image({b"d/low": file(noise(200_000)), b"gone": file(b"x")})
UPPER = erofs_image({b"d/high": file(b"high"), b"gone": whiteout()})
CHUNK = 65536

TOTALS = {
    "fetched_bytes",
    "guessed_bytes",
    "guessed_right_bytes",
    "read_bytes",
    "requests",
    "memory_bytes",
    "cache_hits",
    "cache_misses",
    "verification_failures",
    "errors",
}
LAYER = {
    "digest",
    "mode",
    "lazy",
    "why",
    "verity",
    "size_bytes",
    "blob_bytes",
    "chunks",
    "cached_bytes",
    "chunks_cached",
    "fetched_bytes",
    "requests",
    "errors",
    "errors_by_cause",
    "last_error",
    "notes",
}


@pytest.fixture
def options(tmp_path: Path) -> MountOptions:
    return MountOptions(cache_dir=tmp_path / "cache")


def image(folder: Path, *layers: Layer) -> str:
    return write_image(folder / "layout", layers, ["sha256:" + "a" * 64] * len(layers)).name


async def status(opened: MountedImage) -> dict:
    """As ``lazyfs status`` gets it."""
    document: dict = json.loads(json.dumps(await opened.status()))
    return document


async def all_cached(opened: MountedImage) -> None:
    """Until all chunks are in the cache: readers get them before they are written."""
    while any(
        layer["chunks_cached"] < layer["chunks"] for layer in (await status(opened))["layers"]
    ):
        await trio.lowlevel.checkpoint()


async def content(tree: ImageTree, path: bytes) -> bytes:
    node = ROOT_NODE
    for name in path.split(b"/"):
        node = await tree.lookup(node, name)
    return await tree.read(node, 0, 1 << 20)


async def test_two_layers_are_one_tree_and_the_status_tells_of_both(
    tmp_path: Path, options: MountOptions
):
    layers = [build.seekable(LOWER, CHUNK), build.seekable(UPPER, CHUNK, None)]
    async with open_image(image(tmp_path, *layers), options) as opened:
        assert isinstance(opened.tree, MergedTree)
        while [layer["chunks_cached"] for layer in (await status(opened))["layers"]] != [1, 1]:
            await trio.lowlevel.checkpoint()  # the first chunk of each was needed to open it
        before = await status(opened)
        assert await content(opened.tree, b"d/low") == noise(200_000)
        assert await content(opened.tree, b"d/high") == b"high"
        await all_cached(opened)
        after = await status(opened)
    assert after["totals"].keys() == TOTALS
    assert after["totals"]["read_bytes"] >= before["totals"]["read_bytes"] + 200_000
    assert after["totals"]["errors"] == after["totals"]["verification_failures"] == 0
    low, high = after["layers"]
    assert low.keys() == high.keys() == LAYER
    assert low["chunks_cached"] == low["chunks"] == len(layers[0].frames)
    assert (low["mode"], low["lazy"]) == ("seekable", True)
    assert "dm-verity" in low["verity"]
    assert low["notes"] == []
    assert high["notes"] == ["no dm-verity tree: checked by the SHA-512 of each frame only"]
    assert low["size_bytes"] == len(LOWER)
    assert low["blob_bytes"] == len(layers[0].blob)
    assert after["cache"]["path"] == str(options.cache_dir)
    assert 0 < after["cache"]["usage_bytes"] <= after["cache"]["limit_bytes"]
    assert (after["verify"], after["image"][:4]) == ("always", "oci:")


async def test_a_single_layer_is_shown_as_it_is(tmp_path: Path, options: MountOptions):
    async with open_image(image(tmp_path, build.seekable(UPPER)), options) as opened:
        assert isinstance(opened.tree, SingleTree)
        names = {entry.name for entry in await opened.tree.entries(ROOT_NODE, 0)}
        assert names == {b"d", b"gone"}


async def test_chunks_of_huge_images_are_not_counted(
    tmp_path: Path, options: MountOptions, monkeypatch
):
    monkeypatch.setattr(lazyfs.mount.report, "MAX_COUNTED_CHUNKS", 4)
    layers = [build.seekable(LOWER, CHUNK), build.seekable(UPPER, CHUNK), build.raw(UPPER)]
    assert len(layers[0].frames) == 4
    async with open_image(image(tmp_path, *layers), options) as opened:
        found = [layer["chunks_cached"] for layer in (await status(opened))["layers"]]
        assert found == [1, None, None]


@pytest.mark.parametrize("verify", VerifyMode)
@pytest.mark.parametrize(
    "form", [build.seekable, build.raw, build.zstd, build.spec_seekable], ids=lambda f: f.__name__
)
async def test_every_form_opens_in_every_mode(
    form: Callable[[bytes], Layer], verify: VerifyMode, tmp_path: Path, options: MountOptions
):
    name = image(tmp_path, form(LOWER), form(UPPER))
    async with open_image(name, replace(options, verify=verify)) as opened:
        assert await content(opened.tree, b"d/low") == noise(200_000)
        assert (await status(opened))["verify"] == verify.value


async def test_without_a_folder_for_the_cache_a_small_one_in_memory_does(
    tmp_path: Path, options: MountOptions, caplog
):
    (tmp_path / "cache").write_text("not a folder")
    async with open_image(image(tmp_path, build.seekable(LOWER, CHUNK)), options) as opened:
        assert await content(opened.tree, b"d/low") == noise(200_000)
        assert "File exists" in (await status(opened))["cache"]["problem"]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "mounting without a cache on disk" in warnings[0].getMessage()


async def test_prefetch_brings_all_layers(tmp_path: Path, options: MountOptions):
    name = image(tmp_path, build.seekable(LOWER, CHUNK), build.seekable(UPPER, CHUNK))
    async with open_image(name, replace(options, prefetch="all")) as opened:
        await all_cached(opened)
        assert (await status(opened))["totals"]["errors"] == 0


@pytest.mark.parametrize("number", [1, 2])
async def test_a_layer_that_cannot_be_opened_is_named(
    number: int, tmp_path: Path, options: MountOptions
):
    layers = [build.seekable(LOWER, CHUNK), build.seekable(UPPER, CHUNK)]
    layout = write_image(tmp_path / "layout", layers)
    flip(layout.layer_blob(number), layers[number - 1].table.offset + 40)
    digest = layers[number - 1].descriptor.digest.encoded[:12]
    with pytest.raises(LazyfsError, match=rf"layer {number} \(sha256:{digest}\): chunk table of"):
        async with open_image(layout.name, options):
            pass


async def test_a_layer_that_holds_no_image_is_named(tmp_path: Path, options: MountOptions):
    name = image(tmp_path, build.seekable(LOWER), build.seekable(noise(5000)))
    with pytest.raises(LazyfsError, match="layer 2: "):
        async with open_image(name, options):
            pass


async def test_an_image_of_tar_layers_is_refused_before_anything_is_fetched(
    tmp_path: Path, options: MountOptions
):
    tar = Layer(b"", b"text", "application/vnd.oci.image.layer.v1.tar")
    with pytest.raises(PlanError, match="convert the image first"):
        async with open_image(image(tmp_path, tar), options):
            pass


async def test_an_error_of_who_uses_the_image_comes_out_as_it_is(
    tmp_path: Path, options: MountOptions
):
    name = image(tmp_path, build.seekable(LOWER), build.seekable(UPPER))
    with pytest.raises(ZeroDivisionError):
        async with open_image(name, options):
            raise ZeroDivisionError


# Local images


async def test_a_local_image_and_its_device(tmp_path: Path, options: MountOptions):
    paths = []
    for number, data in enumerate(golden_devices("device")):
        paths.append(tmp_path / f"{number}.erofs")
        paths[-1].write_bytes(data)
    name = f"erofs:{paths[0]},device={paths[1]}"
    async with open_image(name, options) as opened:
        assert isinstance(opened.tree, SingleTree)
        assert await opened.tree.entries(ROOT_NODE, 0)
        found = await status(opened)
    assert (found["image"], found["digest"], found["cache"]) == (name, None, None)
    assert found["totals"].keys() == TOTALS
    assert [layer.keys() for layer in found["layers"]] == [LAYER, LAYER]
    with pytest.raises(MountError, match=r"name each device as ,device=FILE"):
        async with open_image(f"erofs:{paths[0]}", options):
            pass


@pytest.mark.parametrize("name", ["erofs:/absent", "erofs:/", "erofs:/dev/null"])
async def test_what_is_no_local_image_is_refused(name: str, options: MountOptions):
    with pytest.raises(LazyfsError):
        async with open_image(name, options):
            pass
