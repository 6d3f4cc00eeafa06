"""``verify_image``: a sound image is sound; one flipped bit, wherever it is, is found and named."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.errors import PlanError
from lazyfs.verify.findings import MAX_LISTED, Finding, Kind, Report
from lazyfs.verify.image import verify_image
from registry.transports import open_source
from tests.support import layer_forms
from tests.support.in_process import run_lazyfs
from tests.support.layer_builder import (
    Layer,
    raw,
    seekable,
    spec_seekable,
    zstd,
)
from tests.support.layer_layouts import Layout, content, flip, nodes, tree_image, write_image

BLOCK = 4096

FORMS = {
    **layer_forms.FORMS,
    "chunks below blocks": lambda image: seekable(image[:200_000], chunk=1000),
    "zstd frames": lambda image: zstd(image, 100_000),
}


@pytest.fixture(scope="module")
def image() -> bytes:
    return tree_image()


async def verify(layout: Layout) -> Report:
    async with open_source(layout.name) as source:
        return await verify_image(source, None, 2, SilentProgress())


def kinds(report: Report) -> set[Kind]:
    return {finding.kind for finding in found(report)}


def found(report: Report) -> list[Finding]:
    return [
        *report.findings.listed,
        *(one for layer in report.layers for one in layer.findings.listed),
    ]


def of_kind(report: Report, kind: Kind) -> list[Finding]:
    return [finding for finding in found(report) if finding.kind is kind]


def layout_of(tmp_path: Path, image: bytes, form: str) -> Layout:
    return write_image(tmp_path / "image", [FORMS[form](image)])


@pytest.mark.parametrize("form", FORMS)
async def test_sound(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    report = await verify(write_image(tmp_path / "image", [layer, layer]))
    if form != "chunks below blocks":  # which is no whole image
        assert found(report) == []
    for part in report.layers:
        assert part.counts.chunks == len(layer.frames) or not layer.frames
        assert part.counts.image_bytes == len(layer.image)
        assert part.counts.names > 200
        if layer.tree.length:
            assert part.counts.hash_blocks == layer.tree.length // _block(form) - 1
            assert part.counts.data_blocks == -(-len(layer.image) // _block(form))


def _block(form: str) -> int:
    return 512 if form == "small blocks" else BLOCK


@pytest.mark.parametrize(
    "form", [form for form in FORMS if "zstd" not in form and "no index" not in form]
)
@pytest.mark.parametrize("which", [0, 3, -1])
async def test_a_flipped_bit_in_a_chunk(form: str, which: int, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer, layer])
    if not layer.frames:
        offset = len(image) // 2
    else:
        where = layer.frames[which]
        offset = where.offset + where.length // 2
    flip(layout.layer_blob(), offset)
    report = await verify(layout)
    assert Kind.BLOB in kinds(report)
    if layer.frames:
        index = which % len(layer.frames)
        broken = of_kind(report, Kind.CHUNK) + of_kind(report, Kind.DATA_BLOCK)
        assert broken
        for finding in of_kind(report, Kind.CHUNK):
            assert finding.where["chunk"] == index
            assert finding.where["blob_offset"] == layer.frames[index].offset
            assert finding.where["blob_bytes"] == layer.frames[index].length


@pytest.mark.parametrize("form", ["containerd", "no tree", "spec", "spec, no tree"])
@pytest.mark.parametrize("where", ["frame", "header", "first entry", "last entry"])
async def test_a_flipped_bit_in_the_table(form: str, where: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    offset = {
        "frame": layer.table.offset - 8,
        "header": layer.table.offset + 9,
        "first entry": layer.table.offset + 40,
        "last entry": layer.table.end - 1,
    }[where]
    flip(layout.layer_blob(), offset)
    report = await verify(layout)
    # Without the table the blob is decoded from its start, which shows that all else is sound.
    assert {Kind.TABLE, Kind.BLOB} <= kinds(report)
    assert kinds(report) <= {Kind.TABLE, Kind.BLOB, Kind.DIFF_ID}
    assert report.layers[0].counts.names > 200
    (finding,) = of_kind(report, Kind.TABLE)
    assert "chunk table" in finding.message or "skippable" in finding.message


async def test_a_flipped_bit_in_the_superblock_of_the_tree(image: bytes, tmp_path: Path):
    layer = seekable(image)
    for offset in (1, 33, 65, 73):
        layout = write_image(tmp_path / str(offset), [layer])
        flip(layout.layer_blob(), layer.tree.offset + offset)
        report = await verify(layout)
        assert kinds(report) == {Kind.TREE, Kind.BLOB}
        assert report.layers[0].counts.chunks == len(layer.frames), (
            "chunks are checked all the same"
        )


@pytest.mark.parametrize("level", ["root", "leaf"])
async def test_a_flipped_bit_in_a_hash_block(level: str, image: bytes, tmp_path: Path):
    layer = seekable(image)
    assert layer.tree.length > 4 * BLOCK
    offset = layer.tree.offset + BLOCK if level == "root" else layer.tree.end - BLOCK
    layout = write_image(tmp_path / "image", [layer])
    flip(layout.layer_blob(), offset + 7)
    report = await verify(layout)
    assert kinds(report) == {Kind.HASH_BLOCK, Kind.BLOB}
    (finding,) = of_kind(report, Kind.HASH_BLOCK)
    leaves = layer.tree.length // BLOCK - 2
    assert finding.where == {
        "level": 1 if level == "root" else 0,
        "block": 0 if level == "root" else leaves - 1,
        "blob_offset": offset,
        "blob_bytes": BLOCK,
    }
    blocks = len(image) // BLOCK
    lost = blocks if level == "root" else blocks - (leaves - 1) * 64
    assert report.layers[0].notes[0].startswith(f"{lost} data blocks were not checked")


async def test_hash_blocks_in_the_chunks(image: bytes, tmp_path: Path):
    """The tree of an image is another's: the index is right, the hash blocks are not."""
    other = tree_image(300_001)
    assert len(other) == len(image)
    layer = spec_seekable(image)
    root = spec_seekable(other).annotations["org.erofs.dmverity.root_digest"]
    report = await verify(write_image(tmp_path / "image", [layer.changed(root_digest=root)]))
    assert kinds(report) == {Kind.HASH_BLOCK}
    (finding,) = found(report)
    assert finding.where["content_offset"] == len(layer.image) + BLOCK


async def test_every_block_that_differs_is_named(image: bytes, tmp_path: Path):
    """Frames have their digests, but the tree was made over another image."""
    changed = bytearray(image)
    for block in (3, 50, 51):
        changed[block * BLOCK + 100] ^= 1
    tree = seekable(image)
    layer = seekable(bytes(changed))
    blob = layer.blob[: layer.tree.offset] + tree.blob[tree.tree.offset :]
    root = tree.annotations["dev.containerd.erofs.dmverity.root_digest"]
    mixed = replace(layer, blob=blob).changed(root_digest=root)
    report = await verify(write_image(tmp_path / "image", [mixed]))
    blocks = of_kind(report, Kind.DATA_BLOCK)
    assert [finding.where["block"] for finding in blocks] == [3, 50, 51]
    assert blocks[0].where["image_offset"] == 3 * BLOCK
    for finding in blocks:
        assert f"data block {finding.where['block']}" in finding.message


async def test_blocks_in_two_chunks(image: bytes, tmp_path: Path):
    changed = bytearray(image)
    changed[49_999] ^= 1  # in the block that the first two chunks share
    tree = seekable(image, chunk=50_000)
    layer = seekable(bytes(changed), chunk=50_000)
    blob = layer.blob[: layer.tree.offset] + tree.blob[tree.tree.offset :]
    root = tree.annotations["dev.containerd.erofs.dmverity.root_digest"]
    mixed = replace(layer, blob=blob).changed(root_digest=root)
    report = await verify(write_image(tmp_path / "image", [mixed]))
    (finding,) = of_kind(report, Kind.DATA_BLOCK)
    assert finding.where["block"] == 49_999 // BLOCK


@pytest.mark.parametrize("form", FORMS)
async def test_a_wrong_diff_id(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    wrong = f"sha256:{'0' * 64}"
    report = await verify(write_image(tmp_path / "image", [layer], [wrong]))
    assert Kind.DIFF_ID in kinds(report)
    assert wrong in of_kind(report, Kind.DIFF_ID)[0].message


async def test_the_configuration(image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [seekable(image)])
    digest = layout.manifest["config"]["digest"]
    flip(layout.blob(digest), 20)
    report = await verify(layout)
    assert kinds(report) == {Kind.CONFIG}
    assert digest in str(found(report)[0])
    assert report.layers[0].counts.names > 200, "layers are checked all the same"


async def test_the_manifest(image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [seekable(image)])
    flip(layout.blob(layout.manifest_digest), 100)
    report = await verify(layout)
    assert kinds(report) == {Kind.MANIFEST}
    assert layout.manifest_digest in found(report)[0].message


@pytest.mark.parametrize("damage", ["missing", "short"])
async def test_a_blob_that_is_not_there(damage: str, image: bytes, tmp_path: Path):
    layers = [seekable(image), raw(image)]
    layout = write_image(tmp_path / "image", layers)
    path = layout.layer_blob(1)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    report = await verify(layout)
    assert kinds(report) == {Kind.BLOB}
    assert [part.findings.count for part in report.layers] == [1, 0]


async def test_a_tree_that_is_found_only_by_decoding(image: bytes, tmp_path: Path):
    """Its blob is as it should be; the root is that of another image."""
    layer = FORMS["spec, no index"](image)
    root = spec_seekable(tree_image(300_001)).annotations["org.erofs.dmverity.root_digest"]
    report = await verify(write_image(tmp_path / "image", [layer.changed(root_digest=root)]))
    assert kinds(report) == {Kind.HASH_BLOCK}
    changed = bytearray(image)
    changed[50_000] ^= 1
    other = FORMS["spec, no index"](bytes(changed))
    layer = spec_seekable(image)
    tree = content(layer)[layer.tree.offset :]
    mixed = zstd(bytes(changed) + tree)
    report = await verify(
        write_image(
            tmp_path / "mixed",
            [
                replace(other, blob=mixed.blob).changed(
                    root_digest=layer.annotations["org.erofs.dmverity.root_digest"]
                )
            ],
        )
    )
    assert kinds(report) == {Kind.DATA_BLOCK}
    assert found(report)[0].where["block"] == 50_000 // BLOCK


@pytest.mark.parametrize("form", ["zstd", "zstd frames"])
async def test_a_broken_zstd_stream(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    flip(layout.layer_blob(), len(layer.blob) // 2)
    assert Kind.BLOB in kinds(await verify(layout))


async def test_malformed_annotations(image: bytes, tmp_path: Path):
    layers = [seekable(image).changed(chunk_digest="sha512:12"), seekable(image)]
    report = await verify(write_image(tmp_path / "image", layers))
    assert Kind.PLAN in {finding.kind for finding in report.findings.listed}
    assert {finding.kind for finding in report.layers[0].findings.listed} == {Kind.PLAN}
    assert report.layers[1].findings.count == 0
    assert report.layers[1].counts.names > 200


async def test_an_image_of_tars_is_refused(tmp_path: Path):
    layer = Layer(b"", b"not looked at", "application/vnd.oci.image.layer.v1.tar+gzip")
    with pytest.raises(PlanError, match="convert the image first"):
        await verify(write_image(tmp_path / "image", [layer]))


async def test_the_list_has_an_end(image: bytes, tmp_path: Path):
    """All frames are broken; so many are listed, the others counted."""
    layer = seekable(image, chunk=4096)
    layout = write_image(tmp_path / "image", [layer])
    for frame in layer.frames:
        flip(layout.layer_blob(), frame.offset)
    findings = (await verify(layout)).layers[0].findings
    assert len(findings.listed) == MAX_LISTED
    assert findings.count > len(layer.frames) > MAX_LISTED


async def test_files_in_broken_chunks_are_named(image: bytes, tmp_path: Path):
    layer = seekable(image, chunk=16384)
    layout = write_image(tmp_path / "image", [layer])
    place = image.index(nodes()[b"data/noise"].data)
    index = place // 16384 + 2
    flip(layout.layer_blob(), layer.frames[index].offset + 50)
    report = await verify(layout)
    (chunk,) = of_kind(report, Kind.CHUNK)
    assert chunk.where["chunk"] == index
    (finding,) = of_kind(report, Kind.EROFS)
    assert finding.where["path"] == "/data/noise"
    assert any("diff ID was not checked" in note for note in report.layers[0].notes)


# The command


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    return run_lazyfs("verify", *words)


def test_the_command(image: bytes, tmp_path: Path):
    layer = seekable(image)
    layout = write_image(tmp_path / "image", [layer, layer])
    done = command(layout.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("all is well")
    assert "layer 1/2" in done.stderr
    quiet = command(layout.name, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    flip(layout.layer_blob(), layer.frames[2].offset + 30)
    done = command(layout.name)
    assert done.returncode == 1
    frame = layer.frames[2]
    assert f"chunk 2, blob {frame.offset}+{frame.length}, content 131072+65536: " in done.stdout
    document = json.loads(command(layout.name, "--json", "--quiet").stdout)
    assert document["ok"] is False
    assert document["digest"] == layout.manifest_digest
    assert [part["ok"] for part in document["layers"]] == [False, False]
    (finding,) = [one for one in document["layers"][0]["findings"] if one["kind"] == "chunk"]
    assert finding["chunk"] == 2
    assert (finding["blob_offset"], finding["blob_bytes"]) == (frame.offset, frame.length)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["oci:{0}/none:app"], 1, "no such file"),
        (["erofs:{0}/none"], 1, "No such file"),
        (["oci:{0}/none:app", "--jobs", "0"], 2, "not a positive number"),
        ([], 2, "required: IMAGE"),
    ],
)
def test_failures_are_one_line(words: list[str], status: int, message: str, tmp_path: Path):
    done = command(*(word.format(tmp_path) for word in words))
    assert done.returncode == status
    assert message in done.stderr
    if status == 1:
        (line,) = done.stderr.splitlines()
        assert line.startswith("lazyfs verify: ")


def test_a_local_image(image: bytes, tmp_path: Path):
    path = tmp_path / "image.erofs"
    path.write_bytes(image)
    assert command(f"erofs:{path}").returncode == 0
    path.write_bytes(image[:-BLOCK])
    done = command(f"erofs:{path}")
    assert done.returncode == 1
    assert "superblock: image of" in done.stdout
