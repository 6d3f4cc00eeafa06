"""What conversions promise: the same digests every time, and the layout to the byte."""

from pathlib import Path

import pytest

from tests.support import images
from tests.support.converted import ConvertedImage
from tests.support.layer_blob import take_apart
from tests.support.lazy_mounts import convert, mounted
from tests.support.mounting import needs_fuse
from tests.support.overlay_oracle import decode, erofs_overlay
from tests.support.tiny_image import write_layout
from tests.support.trees import assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

LAYERS = 100
SKIPPABLE_HEADER, TABLE_HEADER, TABLE_ENTRY, BLOCK = 8, 23, 72, 4096


def documents(layout: Path) -> dict[str, bytes]:
    """Manifests and configurations of a layout folder, and what blobs there are."""
    blobs = sorted((layout / "blobs/sha256").iterdir())
    return {
        path.name: path.read_bytes() if path.stat().st_size < 1 << 16 else b"" for path in blobs
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_big_image_has_the_same_digests_whatever_jobs_is(
    big_image: ConvertedImage, jobs: int, work_folder: Path
):
    target = work_folder / f"jobs-{jobs}"
    source = f"oci:{big_image.layout}:{images.TAG}"
    result = convert(source, f"oci:{target}:again", "--jobs", str(jobs))
    assert result["digest"] == big_image.result["digest"]
    written = {f"sha256:{name}" for name in documents(target)}
    manifest = big_image.manifest
    wanted = {result["digest"], manifest["config"]["digest"]}
    assert written == wanted | {layer["digest"] for layer in manifest["layers"]}


@pytest.mark.parametrize(
    "options",
    [
        ("--chunk-size=64KiB",),
        ("--chunk-size=128KiB", "--no-verity"),
        ("--verity-block-size=512", "--level=1"),
    ],
    ids=" ".join,
)
def test_options_change_the_digest_and_jobs_do_not(options: tuple[str, ...], tmp_path: Path):
    files = {f"dir/{number}": images.noise(number * 1000, b"%d" % number) for number in range(60)}
    write_layout(tmp_path / "in", "tar", [files, {"dir/.wh.7": b"", "new": b"x" * 10_000}])
    results = [
        convert(
            f"oci:{tmp_path}/in:tar", f"oci:{tmp_path}/out{number}:x", f"--jobs={jobs}", *options
        )
        for number, jobs in enumerate((1, 2, 16))
    ]
    assert len({result["digest"] for result in results}) == 1
    assert documents(tmp_path / "out0") == documents(tmp_path / "out2")
    plain = convert(f"oci:{tmp_path}/in:tar", f"oci:{tmp_path}/plain:x")
    assert plain["digest"] != results[0]["digest"]


def test_the_layout_is_that_of_containerds_example(tmp_path: Path):
    """An image of 2125 blocks in three chunks: the frames of table and tree are known lengths."""
    files = {"data": images.noise(2124 * BLOCK), "small": b"x"}
    write_layout(tmp_path / "in", "tar", [files])
    names = f"oci:{tmp_path}/in:tar", f"oci:{tmp_path}/out:x"
    result = convert(*names, "--chunk-size=4MiB")
    [layer] = result["images"][0]["layers"]
    blob = (tmp_path / "out/blobs" / layer["digest"].replace(":", "/")).read_bytes()
    parts = take_apart(blob, layer["annotations"])
    assert 2113 <= -(-parts.image_size // BLOCK) <= 2176
    assert len(parts.frames) == 3
    assert parts.verity is not None
    table_frame = parts.table.end - parts.table.start + SKIPPABLE_HEADER
    assert table_frame == SKIPPABLE_HEADER + TABLE_HEADER + 3 * TABLE_ENTRY == 247
    verity_frame = parts.verity.end - parts.verity.start + SKIPPABLE_HEADER
    assert verity_frame == SKIPPABLE_HEADER + 36 * BLOCK == 147464
    assert parts.verity.start == parts.table.end + SKIPPABLE_HEADER
    assert parts.verity.end == len(blob)


def test_a_hundred_layers(tmp_path: Path):
    """Each layer adds a file and a directory, and takes away or replaces what others made."""
    layers: list[dict[str, bytes]] = []
    wanted: dict[str, bytes] = {}
    for number in range(LAYERS):
        layer = {
            f"file-{number}": b"%d" % number,
            "replaced": b"by %d" % number,
            f"shared/{number}": b"%d" % number,
            f"deep/{number % 10}/{number}": b"%d" % number,
        }
        wanted |= layer
        if number % 3 == 2:
            layer[f".wh.file-{number - 1}"] = b""
            del wanted[f"file-{number - 1}"]
        if number % 25 == 24:
            layer[f"deep/{number % 10}/.wh..wh..opq"] = b""
            hidden = [path for path in wanted if path.startswith(f"deep/{number % 10}/")]
            for path in hidden:
                if path not in layer:
                    del wanted[path]
        layers.append(layer)
    write_layout(tmp_path / "in", "tar", layers)
    result = convert(f"oci:{tmp_path}/in:tar", f"oci:{tmp_path}/out:x")
    with mounted(f"oci:{tmp_path}/out:x", tmp_path / "mnt", "--cache-dir", tmp_path / "c") as mount:
        files = [path for path in mount.path.rglob("*") if path.is_file()]
        assert {str(path.relative_to(mount.path)): path.read_bytes() for path in files} == wanted
        shown = look(mount.path)
        assert len(mount.status()["layers"]) == LAYERS
    blobs = tmp_path / "out/blobs"
    raw = [
        decode(blobs / layer["digest"].replace(":", "/"), tmp_path / f"raw/{number}")
        for number, layer in enumerate(result["images"][0]["layers"])
    ]
    with erofs_overlay(raw, tmp_path / "overlay") as tree:
        assert_same(shown, look(tree))
