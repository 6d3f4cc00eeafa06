"""Profiles beside their images: pushed, found, fetched by; a bad one costs some bytes at most."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import lazyfs.mount.startup
import lazyfs.profile.batches
from lazyfs.documents import Documents, KeptSource
from lazyfs.errors import ProfileError
from lazyfs.layer.prefetch import fetch_planned
from lazyfs.mount.assemble import open_image
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import MountOptions
from lazyfs.profile.document import BlockRun, encode_profile
from lazyfs.pushedprofile import fetch_profile, find_profile
from registry.digest import Digest
from registry.interfaces import ReferrerDestination
from registry.manifest import describe
from registry.mediatype import OCI_MANIFEST
from registry.transports import open_destination, open_source
from tests.support import layer_builder as build
from tests.support.image_copy import copy_image
from tests.support.layer_builder import Verity, erofs_image, file
from tests.support.layer_layouts import write_image
from tests.support.layer_rig import noise
from tests.support.profiles import profile_of, push, resolved_at
from tests.support.registry_server import running_registry

CHUNK = 65536
IMAGES = [
    erofs_image({b"low": file(noise(20 * CHUNK, 1))}),
    erofs_image({b"up": file(noise(CHUNK))}),
]
BLOCKS_IN_CHUNK = CHUNK // 4096


@pytest.fixture
def options(tmp_path: Path) -> MountOptions:
    return MountOptions(cache_dir=tmp_path / "cache")


@pytest.fixture
def layout(tmp_path: Path) -> str:
    layers = [build.seekable(image, CHUNK, Verity(512)) for image in IMAGES]
    return write_image(tmp_path / "layout", layers, ["sha256:" + "a" * 64] * len(layers)).name


@pytest.fixture(params=["layout", "registry"])
def name(request: pytest.FixtureRequest, layout: str, tmp_path: Path) -> Iterator[str]:
    """The image in a folder, and in a registry that keeps no lists of referrers."""
    if request.param == "layout":
        yield layout
        return
    with running_registry(tmp_path / "registry") as server:
        trio.run(copy, layout, f"{server.host}/app:lazy")
        yield f"{server.host}/app:lazy"


async def copy(source: str, target: str) -> None:
    async with open_source(source) as image, open_destination(target) as destination:
        await copy_image(image, destination)


async def status(opened: MountedImage) -> dict:
    document: dict = json.loads(json.dumps(await opened.status()))
    return document


@asynccontextmanager
async def started(name: str, options: MountOptions) -> AsyncIterator[tuple[MountedImage, dict]]:
    """An opened image, when what a profile names has come, and what its status says of that."""
    async with open_image(name, options) as opened:
        while (await status(opened))["profile"]["state"] in ("looking", "fetching"):
            await trio.sleep(0.01)
        yield opened, (await status(opened))["profile"]


async def cached(opened: MountedImage) -> list[int]:
    return [layer["chunks_cached"] for layer in (await status(opened))["layers"]]


async def test_the_newest_profile_is_found_and_what_it_names_is_fetched(
    name: str, options: MountOptions
):
    before = await resolved_at(name)
    lower = BlockRun(0, 8 * BLOCKS_IN_CHUNK, 3 * BLOCKS_IN_CHUNK)
    await push(name, await profile_of(name, lower), "2026-01-02T00:00:00Z")
    everything = BlockRun(0, 0, 20 * BLOCKS_IN_CHUNK)
    await push(name, await profile_of(name, everything), "2026-01-01T00:00:00Z")
    assert (await resolved_at(name)).descriptor == before.descriptor
    async with open_image(name, replace(options, prefetch="none")) as opened:
        assert (await status(opened))["profile"]["state"] == "none"
    async with started(name, options) as (opened, profile):
        assert profile["state"] == "done"
        assert profile["named_bytes"] == 3 * CHUNK
        assert profile["here_bytes"] == profile["wanted_bytes"] > 3 * CHUNK
        assert profile["failed_bytes"] == profile["dropped_blocks"] == 0
        while (await cached(opened))[0] < 3:  # what has come is written a moment later
            await trio.sleep(0.01)
        assert (await cached(opened))[0] in (3, 4), "these, and the front, which is needed to mount"


async def test_what_lies_apart_comes_by_one_request_of_a_registry(
    layout: str, tmp_path: Path, options: MountOptions
):
    with running_registry(tmp_path / "registry") as server:
        name = f"{server.host}/app:lazy"
        await copy(layout, name)
        async with open_image(name, replace(options, prefetch="none")) as opened:
            before = (await status(opened))["totals"]
        apart = [BlockRun(0, number * BLOCKS_IN_CHUNK, 1) for number in (17, 3, 11, 7, 14, 5)]
        await push(name, await profile_of(name, *apart), "2026-01-02T00:00:00Z")
        folder = replace(options, cache_dir=tmp_path / "another")
        async with started(name, folder) as (opened, profile):
            assert profile["here_bytes"] == profile["wanted_bytes"] > 6 * CHUNK * 0.99
            totals = (await status(opened))["totals"]
        assert totals["requests"] - before["requests"] in (1, 2), "chunks, perhaps hash blocks"
        assert totals["fetched_bytes"] - before["fetched_bytes"] >= profile["here_bytes"]


async def test_nothing_is_read_ahead_from_what_a_profile_brings(
    name: str, options: MountOptions, monkeypatch
):
    aheads, expected = [], []

    async def observed(plan, readers, progress) -> None:
        aheads.append(readers[0].ahead)
        expected.append(set(readers[0].ahead.coming))
        await fetch_planned(plan, readers, progress)

    await push(
        name,
        await profile_of(name, BlockRun(0, 8 * BLOCKS_IN_CHUNK, 3 * BLOCKS_IN_CHUNK)),
        "2026-01-02T00:00:00Z",
    )
    monkeypatch.setattr(lazyfs.mount.startup, "fetch_planned", observed)
    async with started(name, options):
        assert [set(ahead.coming) for ahead in aheads] == [set()]
    assert expected == [{8, 9, 10}]


async def test_a_known_profile_is_used_again_without_its_registry(
    layout: str, tmp_path: Path, options: MountOptions
):
    with running_registry(tmp_path / "registry") as server:
        name = f"{server.host}/app:lazy"
        await copy(layout, name)
        await push(name, await profile_of(name, BlockRun(0, 0, 1)), "2026-01-01T00:00:00Z")
        async with started(name, options) as (_, profile):
            assert profile["state"] == "done"
            first = profile["origin"]
        await push(name, await profile_of(name, BlockRun(1, 0, 1)), "2026-01-02T00:00:00Z")
        async with started(name, options) as (_, profile):
            assert profile["origin"] == first, "nobody waits for news"
            while True:  # until they have come
                async with started(name, options) as (_, profile):
                    if profile["origin"] != first:
                        break
    async with started(name, replace(options, timeout_s=5)) as (_, profile):
        assert profile["named_bytes"] == 4096
        assert profile["here_bytes"] == profile["wanted_bytes"] > 0


async def test_an_image_without_profile_is_mounted_like_any(name: str, options: MountOptions):
    async with started(name, options) as (_, profile):
        assert profile["state"] == "none"
        assert profile["problem"] is None


async def test_a_file_stands_in_for_a_pushed_profile(
    layout: str, tmp_path: Path, options: MountOptions
):
    path = tmp_path / "app.profile"
    path.write_bytes(encode_profile(await profile_of(layout, BlockRun(1, 0, 1))))
    async with started(layout, replace(options, profile=path)) as (_, profile):
        assert profile["state"] == "done"
        assert profile["origin"] == os.fspath(path)


async def test_everything_comes_behind_the_profile(layout: str, options: MountOptions):
    await push(layout, await profile_of(layout, BlockRun(0, 4096, 1)), "2026-01-01T00:00:00Z")
    async with open_image(
        layout, replace(options, prefetch="all", verify=options.verify)
    ) as opened:
        while any(
            layer["chunks_cached"] < layer["chunks"] for layer in (await status(opened))["layers"]
        ):
            await trio.sleep(0.01)
        assert (await status(opened))["profile"]["dropped_blocks"] == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda profile: replace(profile, layers=("sha256:" + "0" * 64,) * 2), "another image"),
        (lambda profile: b"{}", "not a profile"),
        (lambda profile: b"\xff", "not JSON"),
    ],
)
async def test_what_is_no_profile_of_this_image_is_told_and_no_error(
    layout: str, tmp_path: Path, options: MountOptions, change, problem: str
):
    changed = change(await profile_of(layout, BlockRun(0, 0, 1)))
    path = tmp_path / "app.profile"
    path.write_bytes(changed if isinstance(changed, bytes) else encode_profile(changed))
    async with started(layout, replace(options, profile=path)) as (opened, profile):
        assert profile["state"] == "failed"
        assert problem in profile["problem"]
        assert await opened.tree.entries(await root(opened), 0)


async def root(opened: MountedImage):
    from lazyfs.model import ROOT_NODE

    await opened.tree.attributes(ROOT_NODE)
    return ROOT_NODE


async def test_a_hostile_profile_costs_limited_bytes(
    layout: str, options: MountOptions, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lazyfs.profile.batches, "LIMIT_BYTES", 5 * CHUNK + 1000)
    everything = BlockRun(0, 0, 1 << 40)
    await push(layout, await profile_of(layout, everything), "2026-01-01T00:00:00Z")
    async with started(layout, options) as (_, profile):
        assert profile["limited"]
        assert profile["here_bytes"] <= 5 * CHUNK + 1000


async def test_a_referrer_that_lies_about_its_blob_is_no_profile(
    layout: str, options: MountOptions
):
    resolved = await resolved_at(layout)
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
    lie = replace(
        describe(raw, OCI_MANIFEST),
        artifact_type="application/vnd.lazyfs.profile.v1",
        annotations={
            "org.opencontainers.image.created": "9",
            "org.lazyfs.profile.digest": str(Digest.of(b"nothing")),
            "org.lazyfs.profile.size": "7",
        },
    )
    async with open_destination(layout) as destination:
        assert isinstance(destination, ReferrerDestination)
        await destination.push_referrer(raw, lie, resolved.descriptor.digest)
    async with started(layout, options) as (_, profile):
        assert profile["state"] == "failed"
    await push(layout, await profile_of(layout, BlockRun(0, 0, 1)), "a later one")
    async with started(layout, options) as (_, profile):
        assert profile["state"] == "done", "what was remembered does not hide a good one"
        assert profile["problem"] is None


async def test_a_profile_of_another_image_is_not_pushed(layout: str):
    profile = replace(await profile_of(layout), image="sha256:" + "1" * 64)
    with pytest.raises(ProfileError, match="record it again"):
        await push(layout, profile, "2026-01-01T00:00:00Z")


async def test_what_was_pushed_can_be_fetched(name: str):
    profile = await profile_of(name, BlockRun(0, 3, 2))
    await push(name, profile, "2026-01-01T00:00:00Z")
    async with open_source(name) as source:
        kept = KeptSource(source, Documents(None))
        blob = await find_profile(kept, (await resolved_at(name)).descriptor.digest)
        assert blob is not None
        assert await fetch_profile(kept, blob) == profile
