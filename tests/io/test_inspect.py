"""What an image is made of, from a few kilobytes of it."""

import json
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from lazyfs.errors import LazyfsError, SourceUnavailableError
from lazyfs.image.merged import MergedTree
from lazyfs.inspect import describe, describe_local, layer_of, walk
from lazyfs.layer.metadata import fetch_metadata
from lazyfs.layer.peek import fetch_start
from lazyfs.model import ROOT_NODE
from lazyfs.verity.params import decode_superblock
from registry.interfaces import Access
from tests.support import layer_builder as build
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_builder import Layer, Verity, directory, erofs_image, file, whiteout
from tests.support.layer_layouts import Layout, flip, tree_image, write_image
from tests.support.layer_stacks import images_of, open_layers

BIG = tree_image(12 << 20)
SMALL = tree_image()
CHUNK = 1 << 20


async def inspected(layout: Layout, **options: bool) -> dict:
    document = await describe(layout.name, Access(), None, **options)
    text = json.dumps(document)
    again: dict = json.loads(text)
    return again


@pytest.mark.parametrize("form", [build.seekable, build.spec_seekable, build.raw])
async def test_a_big_layer_costs_kilobytes(form, tmp_path: Path):
    layer = form(BIG) if form is build.raw else form(BIG, 1 << 18)
    layout = write_image(tmp_path / "layout", [layer])
    document = await inspected(layout)
    assert document["fetched_bytes"] < 600_000 < len(layer.blob) / 20
    assert document["requests"] <= 5
    (found,) = document["layers"]
    assert "problem" not in found
    assert found["superblock"]["proven"] is (form is not build.raw)
    assert found["superblock"]["block_bytes"] == 4096
    assert found["superblock"]["blocks"] == len(BIG) // 4096
    assert found["superblock"]["inodes"] > 200


async def test_everything_is_told(tmp_path: Path):
    layer = build.seekable(SMALL, CHUNK // 4, Verity(1024, "sha256", b"pepper"))
    layout = write_image(tmp_path / "layout", [layer])
    document = await inspected(layout, chunks=True)
    assert document["digest"] == layout.manifest_digest
    (found,) = document["layers"]
    assert found["annotations"] == layer.annotations
    assert found["digest"] == str(layer.descriptor.digest)
    assert found["diff_id"].startswith("sha256:")
    table, verity, chunks = found["chunk_table"], found["verity"], found["chunks"]
    assert table["chunks"] == len(layer.frames) == len(chunks)
    assert table["image_bytes"] == table["content_bytes"] == len(SMALL)
    assert table["compressed_bytes"] == layer.table.offset - build.HEADER
    assert (table["frame_digests"], table["proven"]) == ("sha512", True)
    params = decode_superblock(layer.blob[layer.tree.offset :])
    assert verity == {
        "algorithm": "sha256",
        "root_digest": layer.annotations["dev.containerd.erofs.dmverity.root_digest"][7:],
        "data_block_bytes": 1024,
        "hash_block_bytes": 1024,
        "data_blocks": -(-len(SMALL) // 1024),
        "salt": b"pepper".hex(),
        "uuid": params.uuid.hex(),
        "payload_bytes": layer.tree.length,
        "in_chunks": False,
    }
    for chunk, frame in zip(chunks, layer.frames, strict=True):
        assert (chunk["blob_offset"], chunk["frame_bytes"]) == frame
        assert chunk["digest"].startswith("sha512:")
    assert sum(chunk["image_bytes"] for chunk in chunks) == len(SMALL)


FORMS = {
    "without a tree": build.seekable(SMALL, CHUNK, None),
    "without digests": build.seekable(SMALL, CHUNK, digests=False),
    "nothing but its size": build.zstd(SMALL),
    "large blocks": build.seekable(SMALL, CHUNK, Verity(512 << 10)),
    "small chunks": build.seekable(SMALL, 5000),
    "raw with a tree": build.spec_raw(SMALL, Verity()),
    "no image at all": build.seekable(b"", verity=None),
    "tar": Layer(b"", b"text", "application/vnd.oci.image.layer.v1.tar"),
}


@pytest.mark.parametrize("name", FORMS)
async def test_layers_of_every_form_are_described(name: str, tmp_path: Path):
    layout = write_image(tmp_path / "layout", [FORMS[name]], ["sha256:" + "a" * 64])
    (found,) = (await inspected(layout))["layers"]
    assert "problem" not in found
    assert ("superblock" in found) is (
        name not in ("nothing but its size", "no image at all", "tar")
    )
    if "superblock" in found:
        proven = name not in ("without a tree", "large blocks")
        assert found["superblock"]["proven"] is proven


TOP = build.seekable(SMALL, CHUNK)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (TOP.frames[0].offset + 1030, "data block|first chunk frame"),
        (TOP.table.offset + 30, "chunk table of .* wanted sha512:"),
        (TOP.table.offset - 5, "skippable frame"),
        (TOP.tree.offset + 3, "no dm-verity superblock"),
        (TOP.tree.offset + 4096 + 70, "hash block"),
    ],
)
async def test_a_broken_layer_has_a_problem_and_others_do_not(
    place: int, problem: str, tmp_path: Path
):
    lower = build.seekable(tree_image(10), CHUNK)
    layout = write_image(tmp_path / "layout", [lower, TOP])
    flip(layout.layer_blob(2), place)
    document = await inspected(layout)
    whole, broken = document["layers"]
    assert "problem" not in whole
    assert whole["superblock"]["proven"]
    with pytest.raises(ValueError, match=problem):
        raise ValueError(broken["problem"])
    assert "\n" not in broken["problem"]
    assert "superblock" not in broken
    if "hash block" in problem or "data block" in problem:
        assert broken["chunk_table"]["chunks"] == len(TOP.frames)
        assert broken["verity"]["algorithm"] == "sha512"


async def test_people_see_annotations_and_no_control_characters(tmp_path: Path):
    layer = build.seekable(SMALL, CHUNK)
    layer = replace(layer, annotations={**layer.annotations, "by": "\x1b[31mme\n"})
    layout = write_image(tmp_path / "layout", [layer])
    command = [sys.executable, "-m", "lazyfs", "inspect", layout.name]
    done = await trio.run_process(command, capture_stdout=True)
    lines = done.stdout.decode().splitlines()
    assert "  annotated   by=\\x1b[31mme\\n" in lines
    for key, value in layer.annotations.items():
        assert key == "by" or f"  annotated   {key}={value}" in lines


async def test_annotations_without_sense_are_a_problem(tmp_path: Path):
    layout = write_image(tmp_path / "layout", [TOP.changed(table_offset="far")])
    (found,) = (await inspected(layout))["layers"]
    assert "chunk_table_offset is not an offset: 'far'" in found["problem"]


@pytest.mark.parametrize(
    "config",
    [b"", b"not JSON", b"[" * 100_000, b"[]", b'{"a": "\\ud800"}', b"\xff", b"1" * 5000],
)
async def test_a_configuration_that_makes_no_sense_is_a_problem_of_its_own(
    config: bytes, tmp_path: Path
):
    layout = with_config(tmp_path, config)
    document = await inspected(layout)
    assert "configuration" in document["config"]["problem"]
    assert "diff_id" not in document["layers"][0]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rootfs": None},
        {"rootfs": {"diff_ids": "abc"}},
        {"rootfs": {"diff_ids": []}},
        {"rootfs": {"diff_ids": ["a", "b"]}},
        {"config": 7},
    ],
)
async def test_an_odd_configuration_does_no_harm(config: dict, tmp_path: Path):
    document = await inspected(with_config(tmp_path, json.dumps(config).encode()))
    assert "problem" not in document["config"]
    assert "diff_id" not in document["layers"][0]


def with_config(folder: Path, config: bytes) -> Layout:
    """An image whose configuration is ``config``."""
    layout = write_image(folder / "layout", [build.seekable(SMALL, CHUNK)])
    digest = f"sha256:{sha256(config).hexdigest()}"
    layout.blob(digest).write_bytes(config)
    layout.manifest["config"] |= {"digest": digest, "size": len(config)}
    raw = json.dumps(layout.manifest).encode()
    digest = f"sha256:{sha256(raw).hexdigest()}"
    layout.blob(digest).write_bytes(raw)
    index = json.loads((layout.folder / "index.json").read_text())
    index["manifests"][0] |= {"digest": digest, "size": len(raw)}
    (layout.folder / "index.json").write_text(json.dumps(index))
    return replace(layout, manifest_digest=digest)


async def test_an_image_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(LazyfsError):
        await describe(f"oci:{tmp_path}/absent:tag", Access(), None)


async def test_a_local_image_is_described(tmp_path: Path):
    path = tmp_path / "image.erofs"
    path.write_bytes(SMALL)
    document: dict = await describe_local("erofs:image", str(path))
    (found,) = document["layers"]
    assert found["size_bytes"] == len(SMALL)
    assert found["superblock"]["blocks"] == len(SMALL) // 4096
    assert found["superblock"]["proven"] is False


@pytest.mark.parametrize("content", [b"", b"text", bytes(5000), SMALL[:1100]])
async def test_a_file_that_is_no_image_is_an_error(content: bytes, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(LazyfsError):
        await describe_local("erofs:file", str(path))
    with pytest.raises(SourceUnavailableError, match="absent: No such file"):
        await describe_local("erofs:absent", str(tmp_path / "absent"))
    with pytest.raises(SourceUnavailableError, match="Is a directory"):
        await describe_local("erofs:folder", str(tmp_path))


async def test_the_start_of_an_image_is_a_few_kilobytes_of_its_first_chunk():
    layer = build.seekable(BIG, 4 << 20)
    blob = BlobSimulator(layer.blob)
    pointers = layer.plan().pointers
    assert pointers is not None
    metadata = await fetch_metadata(pointers, blob)
    blob.forget()
    start = await fetch_start(metadata, blob)
    assert start.data == BIG[: len(start.data)]
    assert start.proven
    assert len(start.data) >= 4096
    assert blob.fetched_bytes < 400_000


async def test_a_walk_gives_parents_first_and_says_which_layer_shows_what():
    stack = [
        {b"a/low": file(b"1"), b"a/b/c": file(b"2"), b"z": file(b"3"), b"gone": file(b"4")},
        {b"a/high": file(b"5"), b"gone": whiteout(), b"a/b": directory()},
    ]
    tree = MergedTree(await open_layers(images_of(stack)))
    found = {path: (node, attributes) async for path, node, attributes in walk(tree)}
    assert set(found) == {b"", b"a", b"a/b", b"a/b/c", b"a/low", b"a/high", b"z"}
    places = list(found)
    for path in places[1:]:
        assert places.index(path.rpartition(b"/")[0]) < places.index(path)
    layers = {path: layer_of(node) for path, (node, _) in found.items()}
    assert layers == {
        b"": 0,
        b"a": 2,
        b"a/b": 2,
        b"a/b/c": 1,
        b"a/low": 1,
        b"a/high": 2,
        b"z": 1,
    }
    assert layer_of(ROOT_NODE) == 0


async def test_a_walk_of_an_empty_image_is_its_root():
    tree = MergedTree(await open_layers([erofs_image({})]))
    assert [path async for path, _, _ in walk(tree)] == [b""]
