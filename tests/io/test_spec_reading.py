"""Images of the EROFS image specification, made from its text, as mounts read them.

Requirements of consumers: the specification's section 8.2; docs/erofs-image-spec.md has them all.
"""

import gzip
import itertools
import random
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard

from lazyfs.errors import (
    DataBlockMismatchError,
    DigestMismatchError,
    ImageFormatError,
    LazyfsError,
    PlanError,
    TruncatedRecordError,
)
from lazyfs.model import VerifyMode
from tests.support import spec_format as spec
from tests.support import tar_samples as tars
from tests.support.built import built
from tests.support.open_tree import opened_tree
from tests.support.spec_format import Layer, make_layer, standalone_index, with_tree, write_layout

NOISE = random.Random(12).randbytes(300_000)
FILES = {"small": b"a few bytes", "noise": NOISE, "sub/zeros": bytes(100_000)}
IMAGE = built(
    tars.tar(
        tars.directory(b"./"),
        tars.file(b"small", FILES["small"]),
        tars.file(b"noise", NOISE),
        tars.directory(b"sub"),
        tars.file(b"sub/zeros", FILES["sub/zeros"]),
    )
)
CUTS = (0, 5000, 5001, 70_000, 200_000)
RANGE, DIGEST = "org.erofs.chunk-index.range", "org.erofs.chunk-index.digest"
ROLE = "org.erofs.role"


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Opener:
    """Writes an image of some layers, each time a new one, and opens it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def __call__(self, *layers: Layer, verify: VerifyMode = VerifyMode.ALWAYS, **options):
        folder = self._folder / str(next(self._numbers))
        name = write_layout(folder, layers, **options)
        return opened_tree(name, folder / "cache", verify)


@pytest.fixture
def opened(tmp_path):
    return Opener(tmp_path)


@pytest.mark.parametrize("verify", VerifyMode)
@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512", None])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("tree", [True, False])
async def test_every_form_of_index(opened, tmp_path, compressed, algorithm, padding, tree, verify):
    data, notes = with_tree(tmp_path, IMAGE) if tree else (IMAGE, {})
    whole, _ = make_layer(
        data,
        CUTS,
        compressed=compressed,
        algorithm=algorithm,
        padding=padding if compressed else None,
        annotations=notes,
    )
    if compressed:
        assert spec.zstd_tool(whole.blob) == data
    async with opened(whole, verify=verify) as image:
        assert await image.files() == FILES
        (layer,) = image.layers
        unproven = algorithm is None and not tree and verify is not VerifyMode.OFF
        assert layer["lazy"] is not unproven
        assert layer["size_bytes"] >= len(IMAGE)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("block_size", [512, 4096, 8192])
@pytest.mark.parametrize("salt", ["-", "00" * 32, "5a" * 7])
async def test_trees_by_veritysetup(opened, tmp_path, algorithm, block_size, salt):
    image = IMAGE.ljust(-(-len(IMAGE) // block_size) * block_size, b"\0")
    data, notes = with_tree(tmp_path, image, algorithm, block_size, salt)
    whole, _ = make_layer(data, CUTS, annotations=notes)
    async with opened(whole) as opened_image:
        assert await opened_image.files() == FILES
        assert f"dm-verity ({algorithm})" in opened_image.layers[0]["verity"]


async def test_a_chunk_may_span_image_and_tree(opened, tmp_path):
    data, notes = with_tree(tmp_path, IMAGE)
    for cut in (len(IMAGE) - 1, len(IMAGE), len(IMAGE) + 1, len(IMAGE) + 511, 5):
        whole, _ = make_layer(data, (0, cut), annotations=notes)
        async with opened(whole) as image:
            assert await image.files() == FILES


async def test_a_single_block_has_no_tree_but_a_superblock(opened, tmp_path):
    image = built(tars.tar(tars.file(b"a", b"1")))
    (tmp_path / "block").write_bytes(image)
    size = 1 << 14
    image = image.ljust(size, b"\0")
    data, notes = with_tree(tmp_path, image, block_size=size)
    for end in (len(data), len(image) + 512):  # containerd writes no more than the superblock
        whole, _ = make_layer(data[:end], (0,), annotations=notes)
        async with opened(whole) as opened_image:
            assert await opened_image.files() == {"a": b"1"}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("tree", [True, False])
async def test_a_standalone_index(opened, tmp_path, compressed, tree):
    data, notes = with_tree(tmp_path, IMAGE) if tree else (IMAGE, {})
    whole, bare = make_layer(data, CUTS, compressed=compressed, annotations=notes)
    top, _ = make_layer(built(tars.tar(tars.file(b"top", b"1"))), (0,))
    for target in ("", None):
        index = standalone_index(bare, whole, target=target)
        async with opened(bare, index, top) as image:
            assert await image.files() == FILES | {"top": b"1"}
            assert [layer["lazy"] for layer in image.layers] == [True, True]
    wrong = standalone_index(bare, whole, target=spec.digest_of(top.blob))
    with pytest.raises(PlanError, match="is the chunk index of"):
        async with opened(bare, wrong, top):
            pass


async def test_without_an_index_the_layer_is_fetched_whole(opened, tmp_path):
    data, notes = with_tree(tmp_path, IMAGE)
    blob = zstandard.compress(data)
    digest = {"org.erofs.uncompressed-digest": spec.digest_of(data)}
    async with opened(Layer(blob, spec.ZSTD, notes | digest)) as image:
        assert await image.files() == FILES
        assert not image.layers[0]["lazy"]
    wrong = {"org.erofs.uncompressed-digest": spec.digest_of(b"other")}
    with pytest.raises(DigestMismatchError, match="content of the blob"):
        async with opened(Layer(blob, spec.ZSTD, notes | wrong)):
            pass


async def test_a_raw_image_with_a_tree_is_read_by_ranges(opened, tmp_path):
    data, notes = with_tree(tmp_path, IMAGE)
    async with opened(Layer(data, spec.RAW, notes)) as image:
        assert await image.files() == FILES
        assert image.layers[0]["lazy"]
        assert image.layers[0]["mode"] == "seekable"
    at = IMAGE.index(NOISE) + 100_000
    async with opened(Layer(flipped(data, at), spec.RAW, notes), verify=VerifyMode.FETCH) as image:
        with pytest.raises(DataBlockMismatchError):
            await image.files()


class TestFallingBack:
    """What cannot be used is not: the layer is read from its start (requirements 4 to 6)."""

    @pytest.fixture
    def layer(self):
        return make_layer(IMAGE, CUTS)[0]

    async def check(self, opened, layer: Layer, why: str) -> None:
        async with opened(layer) as image:
            assert await image.files() == FILES
            assert not image.layers[0]["lazy"]
            assert why in image.layers[0]["why"]

    async def test_unknown_media_type_of_the_index(self, opened, layer):
        other = layer.noted(**{"org.erofs.chunk-index.mediaType": "application/x.index.v2"})
        await self.check(opened, other, "application/x.index.v2")

    @pytest.mark.parametrize(
        ("at", "value", "why"),
        [
            (4, 2, "version 2"),
            (5, 0, "draft page"),
            (5, 2, "compression 2"),
            (6, 1, "flags 0x1"),
            (20, 2, "family 2"),
        ],
    )
    async def test_unknown_header_fields(self, opened, layer, at, value, why):
        await self.check(opened, changed(layer, at, value), why)

    async def test_an_index_without_a_digest_in_the_manifest(self, opened, layer):
        await self.check(opened, layer.noted(**{DIGEST: None}), "no digest of the chunk index")

    async def test_unknown_annotations_mean_nothing(self, opened, layer):
        async with opened(layer.noted(**{"org.erofs.what-ever": "x"})) as image:
            assert await image.files() == FILES
            assert image.layers[0]["lazy"]


def changed(layer: Layer, at: int, value: int) -> Layer:
    """The layer with a byte of its index changed, and digests that fit."""
    start = int(layer.annotations[RANGE].partition(":")[0])
    blob = bytearray(layer.blob)
    blob[start + 8 + at] = value
    digest = spec.digest_of(bytes(blob[start + 8 :]))
    return Layer(bytes(blob), layer.media_type, layer.annotations | {DIGEST: digest}, layer.diff_id)


async def test_an_index_without_a_digest_but_a_tree_is_used(opened, tmp_path):
    data, notes = with_tree(tmp_path, IMAGE)
    whole, _ = make_layer(data, CUTS, annotations=notes)
    for verify in VerifyMode:
        async with opened(whole.noted(**{DIGEST: None}), verify=verify) as image:
            assert await image.files() == FILES
            assert image.layers[0]["lazy"]


@pytest.mark.parametrize("compressed", [True, False])
async def test_corrupt_layers_are_refused(opened, compressed):
    layer, _ = make_layer(IMAGE, CUTS, compressed=compressed)
    start = int(layer.annotations[RANGE])
    header = start + (8 if compressed else 0)
    for broken, error, message in (
        (Layer(flipped(layer.blob, header + 40), layer.media_type, layer.annotations),
         DigestMismatchError, "chunk table"),
        (layer.noted(**{DIGEST: spec.digest_of(b"")}), DigestMismatchError, "chunk table"),
        (layer.noted(**{RANGE: str(len(layer.blob) + 1)}), PlanError, "does not lie in a blob"),
        (layer.noted(**{RANGE: f"{start}:{len(layer.blob) + 1}"}), PlanError, "does not lie"),
        (layer.noted(**{RANGE: f"{start}:"}), PlanError, "not a number"),
        (layer.noted(**{RANGE: f"-{start}"}), PlanError, "not a number"),
        (layer.noted(**{DIGEST: "sha256:00"}), PlanError, "not a digest"),
        (layer.noted(**{ROLE: "something"}), PlanError, "unknown role"),
        (layer.noted(**{"org.erofs.dmverity.hash_offset": "4096"}), PlanError, "root_digest is"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            async with opened(broken):
                pass


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (8, "<Q", 150_000, "chunk 4 begins|chunk 3 begins"),
        (8, "<Q", 2**63, "index over"),
        (8, "<Q", 0, "chunks from 0 for 0 bytes"),
        (16, "<I", 4, "chunks need"),
        (16, "<I", 6, "chunks need"),
        (16, "<I", 2**32 - 1, "chunks need"),
        (20, "<B", 0, "without hashes of 32"),
        (21, "<B", 64, "chunks need"),
        (21, "<B", 16, "SHA-2 of 16"),
        (22, "<B", 1, "reserved"),
        (31, "<B", 1, "reserved"),
        (32, "<Q", 2**64 - 1, "frame 0 begins"),
        (32 + 48, "<Q", 0, "frame 0 begins at 0 and ends at 0"),
        (32 + 48, "<Q", 10**9, "frame 0 begins"),
        (40, "<Q", 1, "chunks from 1"),
        (40 + 48, "<Q", 0, "chunk 0 begins at 0 and ends at 0"),
        (40 + 96, "<Q", 5000, "chunk 1 begins"),
    ],
)
async def test_hostile_indexes_are_refused(opened, at, form, value, message):
    layer, _ = make_layer(IMAGE, CUTS)
    start = int(layer.annotations[RANGE])
    blob = bytearray(layer.blob)
    struct.pack_into(form, blob, start + 8 + at, value)
    notes = layer.annotations | {DIGEST: spec.digest_of(bytes(blob[start + 8 :]))}
    with pytest.raises(ImageFormatError, match=message):
        async with opened(Layer(bytes(blob), layer.media_type, notes)):
            pass


async def test_chunks_of_a_raw_layer_must_lie_in_their_order(opened):
    layer, _ = make_layer(IMAGE, CUTS, compressed=False)
    start = int(layer.annotations[RANGE])
    blob = bytearray(layer.blob)
    struct.pack_into("<Q", blob, start + 32 + 48, 4999)
    notes = layer.annotations | {DIGEST: spec.digest_of(bytes(blob[start:]))}
    with pytest.raises(ImageFormatError, match="do not lie in their order"):
        async with opened(Layer(bytes(blob), layer.media_type, notes)):
            pass


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("tree", [True, False])
async def test_a_flipped_bit_never_gives_wrong_bytes(opened, tmp_path, compressed, tree):
    image = built(tars.tar(tars.file(b"f", NOISE[:9000]), tars.file(b"g", b"g")))
    data, notes = with_tree(tmp_path, image) if tree else (image, {})
    layer, _ = make_layer(data, (0, 4096, 9000), compressed=compressed, annotations=notes)
    files = {"f": NOISE[:9000], "g": b"g"}
    refused = 0
    for at in range(0, len(layer.blob), 97):
        broken = Layer(flipped(layer.blob, at), layer.media_type, layer.annotations)
        try:
            async with opened(broken) as opened_image:
                assert await opened_image.files() == files
        except LazyfsError:
            refused += 1
    assert refused > 20


class TestRoles:
    """Sections 2.4, 3.8 and 7: what the layers of an image are to each other."""

    def device_image(self, tmp_path: Path, count: int = 1) -> tuple[bytes, bytes]:
        """An image whose file data lie on an extra device, and that device, by mkfs.erofs."""
        source = tmp_path / "source"
        (source / "sub").mkdir(parents=True)
        for path, data in FILES.items():
            (source / path).write_bytes(data)
        command: list[str | Path] = ["mkfs.erofs", "--quiet", "--chunksize=4096"]
        command += ["--blobdev", tmp_path / "device"]
        subprocess.run([*command, tmp_path / "meta", source], check=True)
        return (tmp_path / "meta").read_bytes(), (tmp_path / "device").read_bytes()

    @pytest.mark.parametrize(
        ("media_type", "pack"),
        [
            ("application/octet-stream", bytes),
            ("application/x-custom+zstd", zstandard.compress),
            ("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress),
            (spec.ZSTD, zstandard.compress),
            (spec.RAW, bytes),
        ],
    )
    async def test_a_device_comes_from_its_own_blob(self, opened, tmp_path, media_type, pack):
        meta, device = self.device_image(tmp_path)
        blob = Layer(pack(device), media_type, {ROLE: "device"}, spec.digest_of(device))
        layer, _ = make_layer(meta, (0,))
        async with opened(blob, layer) as image:
            assert await image.files() == FILES
            assert len(image.layers) == 2

    async def test_a_device_in_chunks_is_lazy(self, opened, tmp_path):
        meta, device = self.device_image(tmp_path)
        whole, bare = make_layer(device, (0, 100_000), compressed=False)
        index = standalone_index(bare, whole)
        octets = Layer(bare.blob, "application/octet-stream", {ROLE: "device"})
        layer, _ = make_layer(meta, (0,))
        async with opened(octets, index, layer) as image:
            assert await image.files() == FILES
            assert all(each["lazy"] for each in image.layers)
        async with opened(whole.noted(**{ROLE: "device"}), layer) as image:
            assert await image.files() == FILES

    async def test_devices_go_to_the_next_image(self, opened, tmp_path):
        meta, device = self.device_image(tmp_path)
        blob = Layer(device, "application/octet-stream", {ROLE: "device"})
        lower, _ = make_layer(meta, (0,))
        other, _ = make_layer(built(tars.tar(tars.file(b"other", b"2"))), (0,))
        async with opened(blob, lower.noted(**{ROLE: "overlay-lower"}), other) as image:
            assert await image.files() == FILES | {"other": b"2"}
        with pytest.raises(PlanError, match="1 more devices, 0 are there"):
            async with opened(blob, other.noted(**{ROLE: "overlay-lower"}), lower):
                pass
        async with opened(blob, other, blob, lower) as image:
            assert await image.files() == FILES | {"other": b"2"}

    async def test_a_device_that_is_too_small(self, opened, tmp_path):
        meta, device = self.device_image(tmp_path)
        blob = Layer(device[:8192], "application/octet-stream", {ROLE: "device"})
        layer, _ = make_layer(meta, (0,))
        async with opened(blob, layer) as image:  # mkfs.erofs does not note the device's size
            with pytest.raises(TruncatedRecordError, match="pass the end of an image of 8192"):
                await image.files()
        table = 128 * int.from_bytes(meta[1024 + 88 : 1024 + 90], "little")
        noted = bytearray(meta)
        noted[1024 + 8] &= ~1  # the superblock has no checksum
        struct.pack_into("<I", noted, table + 64, -(-len(device) // 4096))
        layer, _ = make_layer(bytes(noted), (0,))
        with pytest.raises(PlanError, match="device 1 has 8192 bytes"):
            async with opened(blob, layer):
                pass

    async def test_whiteouts_hide_what_lower_layers_have(self, opened):
        lower, _ = make_layer(IMAGE, CUTS)
        upper, _ = make_layer(
            built(tars.tar(tars.file(b".wh.noise"), tars.file(b"new", b"n"))), (0,)
        )
        async with opened(lower.noted(**{ROLE: "overlay-lower"}), upper) as image:
            assert await image.files() == {
                "small": FILES["small"],
                "sub/zeros": FILES["sub/zeros"],
                "new": b"n",
            }

    @pytest.mark.parametrize("with_device", [False, True])
    async def test_data_only_layers(self, opened, with_device, tmp_path):
        data, _ = make_layer(IMAGE, CUTS, annotations={ROLE: "overlay-data"})
        other, _ = make_layer(
            built(tars.tar(tars.file(b"sub/second", b"from the second"))),
            (0,),
            annotations={ROLE: "overlay-data"},
        )
        meta, _ = make_layer(
            built(
                tars.tar(
                    redirected(b"big", len(NOISE), b"/noise"),
                    redirected(b"dir/two", 15, b"/sub/second"),
                    tars.file(b"own", b"in the image itself"),
                )
            ),
            (0,),
        )
        async with opened(data, other, meta) as image:
            assert await image.files() == {
                "big": NOISE,
                "dir/two": b"from the second",
                "own": b"in the image itself",
            }

    async def test_data_that_are_nowhere(self, opened):
        data, _ = make_layer(IMAGE, CUTS, annotations={ROLE: "overlay-data"})
        for target in (b"/nothing", b"/sub", b"relative", b"/noise/x", b"/", b""):
            meta, _ = make_layer(built(tars.tar(redirected(b"big", 10, target))), (0,))
            async with opened(data, meta) as image:
                with pytest.raises(ImageFormatError, match="data"):
                    await image.files()

    @pytest.mark.parametrize(
        ("roles", "message"),
        [
            (["device"], "cannot be mounted|can be mounted"),
            ([None, "device"], "can be mounted"),
            ([None, "overlay-data"], "can be mounted"),
            (["index", None], "chunk index"),
            ([None, "index"], "chunk index"),
            (["tar", None], "not EROFS"),
            (["unknown", None], "not EROFS"),
        ],
    )
    async def test_orders_that_mean_nothing(self, opened, roles, message):
        whole, bare = make_layer(IMAGE, CUTS)
        kinds = {
            "index": standalone_index(bare, whole, target=None),
            "tar": Layer(b"tar", "application/vnd.oci.image.layer.v1.tar"),
            "unknown": Layer(b"x", "application/vnd.erofs-next"),
        }
        layers = [kinds.get(str(role)) or whole.noted(**{ROLE: role}) for role in roles]
        with pytest.raises(PlanError, match=message):
            async with opened(*layers):
                pass


def redirected(name: bytes, size: int, target: bytes) -> bytes:
    """A file whose data overlayfs takes from another layer."""
    records = {
        b"SCHILY.xattr.trusted.overlay.metacopy": b"",
        b"SCHILY.xattr.trusted.overlay.redirect": target,
    }
    return tars.pax(records) + tars.sparse_1_0(name, size, [(size, b"")])


async def test_images_without_diff_ids_are_read(opened):
    layer, _ = make_layer(IMAGE, CUTS)
    async with opened(layer, diff_ids=False) as image:
        assert await image.files() == FILES
