"""What a path means is told by layers and rules; which mount it is in, without asking a mount."""

import json
import os
from pathlib import Path

import pytest

from lazyfs.errors import MountError
from lazyfs.mount.assemble import open_image
from lazyfs.mount.locate import Location, locate
from lazyfs.mount.options import MountOptions
from tests.support import layer_builder as build
from tests.support.erofs_files import golden_devices
from tests.support.layer_builder import Layer, directory, erofs_image, file, link, whiteout
from tests.support.layer_layouts import write_image
from tests.support.layer_rig import noise

LOWER = erofs_image(
    {
        b"old/file": file(b"x"),
        b"gone/below/file": file(b"x"),
        b"real/data": file(noise(200_000)),
        b"both/low": file(b"x"),
        b"replaced/file": file(b"x"),
    }
)
UPPER = erofs_image(
    {
        b"old": directory(opaque=True),
        b"gone": whiteout(),
        b"both/high": file(b"y"),
        b"replaced": file(b"now a file"),
        b"link": link(b"/here/../real"),
        b"loop": link(b"loop/x"),
    }
)


def image(folder: Path, *layers: Layer) -> str:
    return write_image(folder / "layout", layers, ["sha256:" + "a" * 64] * len(layers)).name


async def test_every_way_to_hide_and_every_layer(tmp_path: Path):
    layers = [build.seekable(LOWER, 65536), build.zstd(UPPER)]
    options = MountOptions(cache_dir=tmp_path / "cache")
    async with open_image(image(tmp_path, *layers), options) as opened:

        async def ask(path: bytes) -> dict:
            document: dict = json.loads(json.dumps(await opened.explain(path)))
            return document

        async def seen(path: bytes) -> tuple[str, list]:
            document = await ask(path)
            return document["result"], [
                (seen["layer"], seen["what"], seen["at"], seen["hidden_by"])
                for seen in document["layers"]
            ]

        opaque = "layer 2: an opaque directory on the way"
        assert await seen(b"/old/file") == ("hidden", [(1, "file", "/old/file", opaque)])
        out = "layer 2: whiteout /gone"
        assert await seen(b"gone/below/file") == (
            "hidden",
            [(2, "whiteout", "/gone", None), (1, "file", "/gone/below/file", out)],
        )
        other = "layer 2: not a directory /replaced"
        assert await seen(b"/replaced/file") == (
            "hidden",
            [(2, "not a directory", "/replaced", None), (1, "file", "/replaced/file", other)],
        )
        assert await seen(b"/both") == (
            "found",
            [(2, "directory", "/both", None), (1, "directory", "/both", None)],
        )
        assert await seen(b"/absent/x") == ("absent", [])

        linked = await ask(b"/link/data")
        assert linked["links"] == [{"at": "/link", "target": "/here/../real"}]
        assert linked["result"] == "absent", "as in the kernel, /here must exist"
        assert (await ask(b"/link"))["target"] == "/here/../real"
        assert "symbolic links" in (await ask(b"/loop/y"))["problem"]

        data = await ask(b"//real/./data")
        assert (data["layer"], data["lazy"], data["complete"]) == (1, True, True)
        assert sum(extent["length"] for extent in data["extents"]) == 200_000
        places = [(chunk["image_offset"], chunk["image_bytes"]) for chunk in data["chunks"]]
        first = data["extents"][0]["address"]
        assert places[0][0] <= first < places[0][0] + places[0][1]
        assert places[-1][0] + places[-1][1] >= first + 200_000
        assert data["counts"]["chunks"] == len(places) >= 4
        whole = await ask(b"/both/high")
        assert (whole["layer"], whole["lazy"], whole["counts"]["cached"]) == (2, False, 1)
        assert (await opened.status())["lazy"] is False
        assert "1 of 2 layers were fetched whole (2)" in str((await opened.status())["why"])


async def test_a_local_image_has_extents_on_its_devices(tmp_path: Path):
    paths = []
    for number, data in enumerate(golden_devices("device")):
        paths.append(tmp_path / f"{number}.erofs")
        paths[-1].write_bytes(data)
    name = f"erofs:{paths[0]},device={paths[1]}"
    async with open_image(name, MountOptions(cache_dir=tmp_path / "cache")) as opened:
        found = await opened.explain(b"/")
    assert (found["result"], found["problem"], found["chunks"]) == ("found", None, [])


def test_the_mount_of_a_path(tmp_path: Path):
    top = os.path.realpath(tmp_path)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "to").symlink_to("mnt")
    (tmp_path / "into").symlink_to(f"{top}/mnt/below")
    (tmp_path / "round").symlink_to("round")
    mounts = {f"{top}/mnt"}
    assert locate(f"{top}/mnt", mounts) == Location(f"{top}/mnt", "/")
    assert locate(f"{top}/mnt/a/b", mounts) == Location(f"{top}/mnt", "/a/b")
    assert locate(f"{top}/to/a", mounts) == Location(f"{top}/mnt", "/a")
    assert locate(f"{top}/into/c", mounts) == Location(f"{top}/mnt", "/below/c")
    assert locate(f"{top}/x/../mnt/c", mounts) == Location(f"{top}/mnt", "/c")
    for outside in (top, f"{top}/round/x", f"{top}/mnt2", "/"):
        with pytest.raises(MountError, match="not in a lazyfs mount"):
            locate(outside, mounts)
