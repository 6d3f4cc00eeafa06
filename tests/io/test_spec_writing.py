"""What ``lazyfs convert --layout erofs-spec`` writes, against the specification's section 8.1.

Blobs are decoded by ``tests.support.spec_format``, which was written from the specification's
text, and by stock tools. docs/erofs-image-spec.md names these tests for each requirement.
"""

import hashlib
import itertools
import json
import random
import re
import stat
import subprocess
from typing import Any

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult, LayerOutcome
from lazyfs.errors import ConversionError
from lazyfs.seekable.mediatypes import Layout
from registry.manifest import Descriptor, decode_index
from registry.mediatype import OCI_INDEX
from tests.support import spec_format as spec
from tests.support import tar_samples as tars
from tests.support.built import built
from tests.support.erofs_reader import ImageInMemory
from tests.support.memory_store import (
    MemoryStore,
    as_json,
    put_image,
    put_index,
    put_tar_image,
    sha256,
)

NOISE = random.Random(5).randbytes(700_000)
LOWER = tars.tar(
    tars.directory(b"./"),
    tars.directory(b"etc"),
    tars.file(b"etc/passwd", b"root:x:0:0\n"),
    tars.file(b"noise", NOISE),
    tars.file(b"zeros", bytes(300_000)),
)
UPPER = tars.tar(
    tars.directory(b"./"),
    tars.file(b".wh.zeros"),
    tars.directory(b"etc"),
    tars.file(b"etc/.wh..wh..opq"),
    tars.file(b"etc/group", b"root:x:0:\n"),
)
SPEC = ConvertOptions(layout=Layout.EROFS_SPEC, chunk_size_bytes=128 << 10, jobs=2)
ROLE = "org.erofs.role"


def options(**values: Any) -> ConvertOptions:
    chosen: dict[str, Any] = {"layout": Layout.EROFS_SPEC, "chunk_size_bytes": 128 << 10}
    return ConvertOptions(**chosen | values)


class Written:
    """A converted image and its source."""

    def __init__(self, store: MemoryStore, result: ConversionResult) -> None:
        self.store = store
        self.result = result
        self.manifest = store.document(result.images[0].descriptor)
        self.layers: list[dict[str, Any]] = self.manifest["layers"]
        config = self.manifest["config"]["digest"]
        self.config = json.loads(self.blob(config))

    def blob(self, digest: str) -> bytes:
        return next(raw for key, raw in self.store.content.items() if str(key) == digest)

    def index(self, number: int) -> tuple[spec.ChunkIndex, int]:
        layer = self.layers[number]
        payload, start = spec.embedded_index(
            self.blob(layer["digest"]), layer["mediaType"], layer["annotations"]
        )
        return spec.read_index(payload), start

    def data(self, number: int) -> bytes:
        """The image data of a layer, decoded by way of its index."""
        return spec.read_image_data(self.blob(self.layers[number]["digest"]), *self.index(number))

    def image(self, number: int) -> bytes:
        """The EROFS image of a layer."""
        offset = self.layers[number]["annotations"].get("org.erofs.dmverity.hash_offset")
        return self.data(number)[: int(offset) if offset else None]


async def written(layers: list[bytes] | MemoryStore, chosen: ConvertOptions = SPEC) -> Written:
    source, store = MemoryStore(), MemoryStore()
    if isinstance(layers, MemoryStore):
        source = layers
    else:
        source.top = put_tar_image(source, layers)
    return Written(store, await convert_image(source, store, chosen, SilentProgress()))


@pytest.fixture(params=[{}, {"file_aligned": True}, {"verity": False}, {"chunk_size_bytes": 4096}])
def chosen(request):
    return options(**request.param)


async def test_media_types_and_roles(chosen):
    image = await written([LOWER, UPPER, UPPER], chosen)
    assert [layer["mediaType"] for layer in image.layers] == [spec.ZSTD] * 3
    roles = [layer["annotations"].get(ROLE) for layer in image.layers]
    assert roles == ["overlay-lower", "overlay-lower", None]
    single = await written([LOWER], chosen)
    assert ROLE not in single.layers[0]["annotations"]


async def test_chunk_index_and_one_frame_per_chunk(chosen):
    image = await written([LOWER, UPPER], chosen)
    for number, layer in enumerate(image.layers):
        index, start = image.index(number)
        assert index.compression == spec.COMPRESSION_ZSTD
        assert index.algorithm == "sha256"
        assert start % 4 == 0
        data = image.data(number)  # decodes each chunk as exactly one frame, by its checksum
        assert data == spec.zstd_tool(image.blob(layer["digest"]))
        lengths = [entry.uncompressed_offset for entry in index.entries] + [index.size]
        longest = max(end - begin for begin, end in itertools.pairwise(lengths))
        assert longest <= chosen.chunk_size_bytes


async def test_frames_as_the_zstd_tool_counts_them(tmp_path):
    image = await written([LOWER])
    index, _ = image.index(0)
    path = tmp_path / "blob.zst"
    path.write_bytes(image.blob(image.layers[0]["digest"]))
    listed = subprocess.run(["zstd", "-lv", path], capture_output=True, text=True, check=True)
    frames = re.search(r"# Zstandard Frames: (\d+)", listed.stdout)
    skippable = re.search(r"# Skippable Frames: (\d+)", listed.stdout)
    assert frames is not None
    assert skippable is not None
    assert (int(frames[1]), int(skippable[1])) == (len(index.entries), 1)


async def test_annotations_of_the_index(chosen):
    image = await written([LOWER], chosen)
    layer = image.layers[0]
    blob, notes = image.blob(layer["digest"]), layer["annotations"]
    payload, start = spec.embedded_index(blob, layer["mediaType"], notes)
    assert notes["org.erofs.chunk-index.range"] == f"{start}:{len(blob)}"
    assert notes["org.erofs.chunk-index.digest"] == spec.digest_of(payload)
    assert notes["org.erofs.chunk-index.mediaType"] == spec.INDEX


@pytest.mark.parametrize("block_size", [512, 4096, 65536])
async def test_the_tree_is_what_veritysetup_takes(tmp_path, block_size):
    image = await written(
        [LOWER], options(verity_block_size_bytes=block_size, chunk_size_bytes=256 << 10)
    )
    notes = image.layers[0]["annotations"]
    data = image.data(0)
    offset = int(notes["org.erofs.dmverity.hash_offset"])
    assert notes["org.erofs.dmverity.block_size"] == str(block_size)
    assert offset % block_size == 0
    algorithm, _, root = notes["org.erofs.dmverity.root_digest"].partition(":")
    assert algorithm == "sha256"
    path = tmp_path / "device"
    path.write_bytes(data)
    command = ["veritysetup", "verify", f"--hash-offset={offset}", path, path, root]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(data[:offset] + b"\1" + data[offset + 1 :])
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
    path.write_bytes(data[:5000] + b"\1" + data[5001:])
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
    path.write_bytes(data[:offset])
    subprocess.run(["fsck.erofs", path], check=True, capture_output=True)


async def test_without_a_tree_nothing_says_that_there_is_one():
    image = await written([LOWER], options(verity=False))
    notes = image.layers[0]["annotations"]
    assert not [key for key in notes if "dmverity" in key]
    assert image.data(0) == image.image(0)


async def test_uncompressed_digests_are_the_diff_ids(chosen):
    image = await written([LOWER, UPPER], chosen)
    digests = [spec.digest_of(spec.zstd_tool(image.blob(each["digest"]))) for each in image.layers]
    notes = [layer["annotations"]["org.erofs.uncompressed-digest"] for layer in image.layers]
    assert notes == digests
    assert image.config["rootfs"] == {"type": "layers", "diff_ids": digests}


async def test_os_features_say_erofs():
    source = MemoryStore()
    entries = []
    for architecture in ("amd64", "arm64"):
        manifest = put_tar_image(source, [LOWER], architecture=architecture)
        platform = {"os": "linux", "architecture": architecture}
        entries.append(as_json(manifest) | {"platform": platform})
    source.top = put_index(source, entries)
    image = await written(source)
    index = decode_index(image.blob(str(image.result.descriptor.digest)), OCI_INDEX)
    assert [entry.platform.os_features for entry in index.manifests if entry.platform] == [
        ("erofs",),
        ("erofs",),
    ]
    assert image.config["os.features"] == ["erofs"]


async def test_whiteouts_only_where_there_is_something_below(chosen):
    image = await written([UPPER, UPPER], chosen)
    bottom, top = (ImageInMemory(image.image(number)).tree() for number in (0, 1))
    assert sorted(bottom) == [b".", b"etc", b"etc/group"]
    assert b"trusted.overlay.opaque" not in bottom[b"etc"].xattrs
    assert sorted(top) == [b".", b"etc", b"etc/group", b"zeros"]
    assert stat.S_ISCHR(top[b"zeros"].mode)
    assert top[b"etc"].xattrs[b"trusted.overlay.opaque"] == b"y"


@pytest.mark.parametrize(
    "members",
    [
        [tars.header(b"gone", kind=b"3")],
        [tars.file(b"d"), tars.directory(b"d")],
        [tars.file(b"d", b"x"), tars.file(b".wh.d")],
        [tars.directory(b"d"), tars.file(b"d/.wh..wh..opq"), tars.file(b".wh.d")],
    ],
)
async def test_a_lowest_layer_hides_nothing(members):
    image = await written([tars.tar(*members)])
    for entry in ImageInMemory(image.image(0)).tree().values():
        assert not stat.S_ISCHR(entry.mode)
        assert not [name for name in entry.xattrs if name.startswith(b"trusted.overlay.")]


async def test_no_name_begins_as_whiteouts_do():
    aufs = [tars.directory(b".wh..wh.plnk"), tars.file(b".wh..wh.plnk/1.2", b"x")]
    image = await written([tars.tar(tars.file(b"a", b"1"), *aufs)])
    assert sorted(ImageInMemory(image.image(0)).tree()) == [b".", b"a"]
    for members in (
        [tars.file(b"d/.wh.x/y")],
        [tars.symlink(b"l", b".wh.x"), tars.file(b"l/y")],
        [tars.file(b".wh.")],
    ):
        with pytest.raises(ConversionError, match="whiteout"):
            await written([tars.tar(*members)])


async def test_an_image_stays_readable_by_the_kernel(tmp_path):
    image = await written([LOWER])
    path, target = tmp_path / "image", tmp_path / "mount"
    path.write_bytes(image.data(0))  # the tree behind the image does not matter
    target.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", path, target], check=True)
    try:
        assert (target / "noise").read_bytes() == NOISE
        assert (target / "etc/passwd").read_bytes() == b"root:x:0:0\n"
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("jobs", [1, 3, 8])
async def test_digests_do_not_depend_on_jobs(jobs, chosen):
    first = await written([LOWER, UPPER], options(jobs=1))
    again = await written([LOWER, UPPER], options(jobs=jobs))
    assert again.result.descriptor == first.result.descriptor


class TestOtherSources:
    """EROFS layers of any layout."""

    @pytest.fixture
    def source(self):
        store = MemoryStore()
        store.top = put_tar_image(store, [LOWER, UPPER])
        return store

    async def convert(self, source: MemoryStore, **values: Any) -> Written:
        return await written(source, ConvertOptions(**{"chunk_size_bytes": 128 << 10} | values))

    async def test_layouts_become_each_other(self, source):
        containerd = await self.convert(source)
        there = await self.convert(containerd.store, layout=Layout.EROFS_SPEC)
        direct = await written(source)
        back = await self.convert(there.store)
        for image in (there, back):
            outcomes = {layer.outcome for layer in image.result.images[0].layers}
            assert outcomes == {LayerOutcome.WRAPPED}
        again = await self.convert(back.store, layout=Layout.EROFS_SPEC)
        assert [layer["digest"] for layer in again.layers] == [
            layer["digest"] for layer in there.layers
        ]
        assert back.layers == containerd.layers
        for number in range(2):
            names = [sorted(ImageInMemory(each.image(number)).tree()) for each in (there, direct)]
            assert names[0] == names[1]
        for layer in back.layers:
            assert not [key for key in layer["annotations"] if key.startswith("org.erofs.")]

    @pytest.mark.parametrize("layout", Layout)
    async def test_seekable_layers_are_left_alone(self, source, layout):
        first = await self.convert(source, layout=layout)
        again = await self.convert(first.store, layout=layout, chunk_size_bytes=4 << 20)
        assert again.layers == first.layers
        assert {layer.outcome for layer in again.result.images[0].layers} == {LayerOutcome.KEPT}
        same = await self.convert(first.store, layout=layout, rechunk=True)
        assert same.layers == first.layers
        assert {layer.outcome for layer in same.result.images[0].layers} == {LayerOutcome.KEPT}

    @pytest.mark.parametrize("layout", Layout)
    async def test_another_chunk_size_is_cut_anew(self, source, layout):
        first = await self.convert(source, layout=layout)
        smaller = await self.convert(
            first.store, layout=layout, chunk_size_bytes=32 << 10, rechunk=True
        )
        outcomes = [layer.outcome for layer in smaller.result.images[0].layers]
        assert outcomes == [LayerOutcome.WRAPPED, LayerOutcome.KEPT]
        assert smaller.layers[0]["digest"] != first.layers[0]["digest"]
        assert smaller.layers[1]["digest"] == first.layers[1]["digest"]

    async def test_raw_images_of_odd_length(self):
        image = built(LOWER) + b"odd"
        store = MemoryStore()
        layer = store.put(image, spec.RAW)
        store.top = put_image(store, [layer], [sha256(image)])
        converted = await written(store)
        data = converted.image(0)
        assert data == image.ljust(len(data), b"\0")
        assert len(data) - len(image) < 4096

    async def test_devices_and_indexes_of_their_own_are_carried(self, tmp_path):
        image = built(LOWER)
        data, notes = spec.with_tree(tmp_path, image)
        whole, bare = spec.make_layer(data, (0, 5000), annotations=notes)
        index = spec.standalone_index(bare, whole)
        device = spec.Layer(b"bytes", "application/octet-stream", {ROLE: "device"})
        top, _ = spec.make_layer(built(UPPER), (0,))
        store = MemoryStore()
        layers = [device, bare, index, top]
        store.top = put_image(
            store,
            [put(store, layer) for layer in layers],
            [layer.diff_id or spec.digest_of(layer.blob) for layer in layers],
        )
        kept = await written(store)
        digests = [spec.digest_of(layer.blob) for layer in layers]
        assert [layer["digest"] for layer in kept.layers] == digests
        assert [layer["annotations"].get(ROLE) for layer in kept.layers] == [
            "device",
            "overlay-lower",
            None,
            None,
        ]
        again = await written(store, options(rechunk=True))
        assert [layer["mediaType"] for layer in again.layers] == [
            "application/octet-stream",
            spec.ZSTD,
            spec.ZSTD,
        ]
        assert again.image(1) == image
        assert len(again.config["rootfs"]["diff_ids"]) == 3
        with pytest.raises(ConversionError, match="has the role device"):
            await written(store, ConvertOptions())

    async def test_sources_without_diff_ids(self, tmp_path):
        layer, _ = spec.make_layer(built(LOWER), (0, 5000))
        raw = spec.Layer(built(UPPER), spec.RAW)
        store = MemoryStore()
        store.top = put_image(
            store, [put(store, layer), put(store, raw)], [], config={"rootfs": {"type": "layers"}}
        )
        converted = await written(store, options(rechunk=True))
        assert converted.config["rootfs"]["diff_ids"] == [
            layer["annotations"]["org.erofs.uncompressed-digest"] for layer in converted.layers
        ]


def put(store: MemoryStore, layer: spec.Layer) -> Descriptor:
    return store.put(layer.blob, layer.media_type, annotations=layer.annotations)


class TestFileAlignedChunks:
    """The same file in two images is the same chunk."""

    def tree(self, changes: dict[bytes, bytes]) -> bytes:
        chooser = random.Random(3)
        members = [tars.directory(b"./")]
        for number in range(400):
            name = b"d%02d/f%03d" % (number // 20, number)
            data = chooser.randbytes(chooser.choice([10, 3000, 9000, 20_000]))
            members.append(tars.file(name, changes.get(name, data)))
        large = changes.get(b"large", chooser.randbytes(900_000))
        return tars.tar(*members, tars.file(b"large", large))

    def chunks(self, image: Written) -> dict[bytes, int]:
        index, _ = image.index(0)
        ends = [entry.uncompressed_offset for entry in index.entries[1:]] + [index.size]
        return {
            entry.checksum: end - entry.uncompressed_offset
            for entry, end in zip(index.entries, ends, strict=True)
        }

    async def test_images_share_the_chunks_of_what_did_not_change(self):
        chosen = options(file_aligned=True, chunk_size_bytes=1 << 20)
        first = await written([self.tree({})], chosen)
        changes = {b"d00/f003": b"longer" * 5000, b"d11/f230": b"", b"d19/f399": b"x" * 5000}
        second = await written([self.tree(changes)], chosen)
        ours, theirs = self.chunks(first), self.chunks(second)
        shared = sum(length for checksum, length in theirs.items() if checksum in ours)
        assert shared > 0.6 * sum(theirs.values())
        fixed = [
            self.chunks(await written([self.tree(each)], options(chunk_size_bytes=1 << 20)))
            for each in ({}, changes)
        ]
        unaligned = sum(length for checksum, length in fixed[1].items() if checksum in fixed[0])
        assert unaligned < 0.3 * shared

    async def test_a_large_file_is_the_same_chunks_wherever_it_lies(self):
        chosen = options(file_aligned=True)
        data = random.Random(1).randbytes(900_000)
        images = [
            await written([tars.tar(*before, tars.file(name, data))], chosen)
            for name, before in (
                (b"a", []),
                (b"other/name", [tars.file(b"%d" % n, b"x" * 5000 * n) for n in range(9)]),
            )
        ]
        ours, theirs = (self.chunks(image) for image in images)
        shared = sum(length for checksum, length in theirs.items() if checksum in ours)
        assert shared == -(-len(data) // 4096) * 4096

    async def test_images_of_others_are_cut_at_their_files(self, tmp_path):
        """By mkfs.erofs, compressed or not, and by ourselves in the other layout."""
        chosen = options(file_aligned=True)
        data = random.Random(1).randbytes(900_000)
        folder = tmp_path / "files"
        folder.mkdir()
        (folder / "large").write_bytes(data)
        for number in range(9):
            (folder / str(number)).write_bytes(b"%d" % number * 7000)
        shared = []
        for words in ([], ["-zlz4"], ["-Enoinline_data"]):
            command = ["mkfs.erofs", "--quiet", *words, tmp_path / "image", folder]
            subprocess.run(command, check=True, capture_output=True)
            raw = (tmp_path / "image").read_bytes()
            store = MemoryStore()
            store.top = put_image(store, [store.put(raw, spec.RAW)], [sha256(raw)])
            image = await written(store, chosen)
            assert image.image(0).rstrip(b"\0") == raw.rstrip(b"\0")
            shared.append(set(self.chunks(image)))
        own = await written([tars.tar(tars.file(b"x", data))], ConvertOptions())
        again = await written(own.store, chosen)
        shared.append(set(self.chunks(again)))
        large = -(-len(data) // chosen.chunk_size_bytes)
        for each in shared[1:]:
            assert len(each & shared[0]) >= large - 1  # an image may keep the tail elsewhere

    async def test_images_that_make_no_sense_are_cut_anyhow(self):
        raw = bytearray(built(LOWER))
        raw[1024 + 14 : 1024 + 16] = b"\xff\xff"  # the root's nid
        raw[1024 + 8] &= ~1  # the superblock has no checksum
        store = MemoryStore()
        store.top = put_image(store, [store.put(bytes(raw), spec.RAW)], [sha256(bytes(raw))])
        image = await written(store, options(file_aligned=True))
        assert image.image(0) == bytes(raw)

    async def test_other_layouts_have_none(self):
        with pytest.raises(ConversionError, match="--layout erofs-spec"):
            ConvertOptions(file_aligned=True)


def test_the_decoder_of_these_tests_refuses_what_is_broken():
    layer, _ = spec.make_layer(NOISE, (0, 1000))
    payload, start = spec.embedded_index(layer.blob, layer.media_type, layer.annotations)
    index = spec.read_index(payload)
    assert spec.read_image_data(layer.blob, index, start) == NOISE
    assert hashlib.sha256(NOISE).hexdigest() in layer.diff_id
    with pytest.raises(AssertionError):
        spec.read_image_data(layer.blob, index, start - 1)
    with pytest.raises(AssertionError):
        spec.read_index(payload + b"\0")
