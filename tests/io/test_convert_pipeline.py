"""Whole conversions between stores in memory: every kind of layer, index and failure."""

import gzip
import hashlib
import json
import os
import subprocess
from dataclasses import replace

import pytest
import trio
import zstandard

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult, LayerOutcome
from lazyfs.errors import ConversionError, DigestMismatchError, PlanError
from lazyfs.seekable.annotations import parse_annotations
from lazyfs.seekable.mediatypes import RAW_LAYER, ZSTD_LAYER
from registry.digest import Digest
from registry.errors import ContentError, NotFoundError, TransportError
from registry.manifest import Descriptor, Index, Manifest, decode_index, decode_manifest
from registry.mediatype import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_TAR_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_TAR,
    OCI_LAYER_TAR_ZSTD,
    OCI_MANIFEST,
)
from registry.platforms import Platform, parse_platform
from tests.support.built import built
from tests.support.memory_store import (
    MemoryStore,
    as_json,
    put_image,
    put_index,
    put_tar_image,
    sha256,
    tars,
)
from tests.support.seekable_blob import make_blob

SMALL = ConvertOptions(chunk_size_bytes=16 << 10, jobs=2)
TARS = tars(3)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Nothing may be left in the folder for temporary files, whatever happens."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(folder))
    yield folder
    assert list(folder.iterdir()) == []


async def convert(
    source: MemoryStore, destination: MemoryStore, options: ConvertOptions = SMALL
) -> ConversionResult:
    return await convert_image(source, destination, options, SilentProgress())


def image_of(store: MemoryStore, descriptor: Descriptor) -> bytes:
    """The raw image, by the zstd tool."""
    blob = store.content[descriptor.digest]
    return subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout


def manifest_of(store: MemoryStore) -> Manifest:
    top = store.named
    return decode_manifest(store.content[top.digest], top.media_type)


def index_of(store: MemoryStore) -> Index:
    return decode_index(store.content[store.named.digest], OCI_INDEX)


def platform_of(entry: Descriptor) -> Platform:
    assert entry.platform is not None
    return entry.platform


async def test_tar_layers_become_seekable_ones():
    source, destination = MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, TARS, annotations={"org.example": "kept"})
    result = await convert(source, destination)
    assert destination.top == result.descriptor
    manifest = manifest_of(destination)
    assert manifest.media_type == OCI_MANIFEST
    assert manifest.annotations == {"org.example": "kept"}
    config = destination.document(manifest.config)
    assert config["os.features"] == ["erofs"]
    assert config["config"] == {"Cmd": ["/bin/true"]}
    assert [step["created_by"] for step in config["history"]] == ["step 0", "step 1", "step 2"]
    for tar, layer, diff_id in zip(
        TARS, manifest.layers, config["rootfs"]["diff_ids"], strict=True
    ):
        assert layer.media_type == ZSTD_LAYER
        image = image_of(destination, layer)
        assert image == built(tar)
        assert sha256(image) == diff_id
        blob = make_blob(image, 16 << 10)
        assert destination.content[layer.digest] == blob.data
        assert parse_annotations(layer.annotations) == blob.annotations
    (image_result,) = result.images
    assert image_result.platform == "linux/amd64"
    assert [layer.outcome for layer in image_result.layers] == [LayerOutcome.CONVERTED] * 3
    assert [layer.chunks for layer in image_result.layers] == [
        -(-(layer.image_size_bytes or 0) // (16 << 10)) for layer in image_result.layers
    ]


@pytest.mark.parametrize("jobs", [1, 3, 8])
async def test_digests_do_not_depend_on_jobs(jobs):
    source = MemoryStore()
    source.top = put_tar_image(source, tars(6, 200_000))
    first = await convert(source, MemoryStore(), ConvertOptions(chunk_size_bytes=8192, jobs=1))
    again = await convert(source, MemoryStore(), ConvertOptions(chunk_size_bytes=8192, jobs=jobs))
    assert again.descriptor == first.descriptor


@pytest.mark.parametrize(
    ("media_type", "pack"),
    [
        (OCI_LAYER_TAR, lambda tar: tar),
        (OCI_LAYER_TAR_ZSTD, zstandard.compress),
        (OCI_LAYER_TAR, gzip.compress),
        (DOCKER_LAYER_TAR_GZIP, lambda tar: gzip.compress(tar[:999]) + gzip.compress(tar[999:])),
    ],
)
async def test_packing_and_media_type_do_not_matter(media_type, pack):
    source, packed = MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, TARS)
    packed.top = put_tar_image(packed, TARS, media_type=media_type, pack=pack)
    first = await convert(source, MemoryStore())
    second = await convert(packed, MemoryStore())
    assert second.descriptor.digest == first.descriptor.digest


async def test_docker_types_become_oci_types():
    source, destination = MemoryStore(), MemoryStore()
    source.top = put_tar_image(
        source,
        TARS[:1],
        media_type=DOCKER_LAYER_TAR_GZIP,
        manifest_type=DOCKER_MANIFEST,
        config_type=DOCKER_CONFIG,
    )
    await convert(source, destination)
    manifest = manifest_of(destination)
    assert (manifest.media_type, manifest.config.media_type) == (OCI_MANIFEST, OCI_CONFIG)


async def test_converting_again_changes_nothing():
    source, first, second = MemoryStore(), MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, TARS)
    await convert(source, first)
    result = await convert(first, second)
    assert result.descriptor == first.top
    assert {layer.outcome for layer in result.images[0].layers} == {LayerOutcome.KEPT}
    assert second.content.items() <= first.content.items()


async def test_seekable_blobs_are_mounted_where_that_works():
    source, first, second = MemoryStore(), MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, TARS)
    await convert(source, first)
    second.can_mount = True
    first.opened.clear()
    await convert(first, second)
    assert first.opened == []


@pytest.mark.parametrize("media_type", [RAW_LAYER, ZSTD_LAYER])
async def test_erofs_layers_are_wrapped(media_type):
    source, tar_source = MemoryStore(), MemoryStore()
    images = [built(tar) for tar in TARS]
    blobs = images if media_type == RAW_LAYER else [zstandard.compress(i) for i in images]
    layers = [source.put(blob, media_type) for blob in blobs]
    source.top = put_image(source, layers, [sha256(image) for image in images])
    tar_source.top = put_tar_image(tar_source, TARS)
    destination = MemoryStore()
    result = await convert(source, destination)
    assert {layer.outcome for layer in result.images[0].layers} == {LayerOutcome.WRAPPED}
    expected = await convert(tar_source, MemoryStore())
    assert result.descriptor.digest == expected.descriptor.digest


async def test_a_layer_used_twice_is_converted_once():
    source, destination = MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, [TARS[0], TARS[1], TARS[0]])
    await convert(source, destination)
    assert len(source.opened) == 2
    layers = manifest_of(destination).layers
    assert layers[0] == layers[2]


async def test_layer_annotations_stay_and_embedded_data_goes():
    source, destination = MemoryStore(), MemoryStore()
    plain = source.put(gzip.compress(TARS[0]), OCI_LAYER_TAR)
    layer = replace(plain, annotations={"org.example.from": "a"})
    source.top = put_image(source, [layer], [sha256(TARS[0])])
    document = source.document(source.top)
    document["config"]["data"] = "e30="
    source.top = source.put(json.dumps(document).encode(), OCI_MANIFEST)
    await convert(source, destination)
    manifest = manifest_of(destination)
    assert manifest.layers[0].annotations["org.example.from"] == "a"
    assert "data" not in manifest.config.extra


def put_multi_platform(source: MemoryStore, index_type: str = OCI_INDEX) -> list[Descriptor]:
    """Two Linux images, an attestation for each, and a Windows image."""
    images = [
        put_tar_image(source, [TARS[0], tar], architecture=architecture)
        for tar, architecture in ((TARS[1], "amd64"), (TARS[2], "arm64"))
    ]
    entries = [
        as_json(image) | {"platform": {"os": "linux", "architecture": architecture}}
        for image, architecture in zip(images, ("amd64", "arm64"), strict=True)
    ]
    for image in images:
        statement = source.put(b'{"about": "%s"}' % str(image.digest).encode(), "application/json")
        attestation = put_image(source, [statement], [str(statement.digest)])
        entries.append(
            as_json(attestation)
            | {
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {
                    "vnd.docker.reference.digest": str(image.digest),
                    "vnd.docker.reference.type": "attestation-manifest",
                },
            }
        )
    windows = as_json(Descriptor(OCI_MANIFEST, Digest.of(b"elsewhere"), 9))
    entries.append(windows | {"platform": {"os": "windows", "architecture": "amd64"}})
    source.top = put_index(source, entries, annotations={"org.example": "index"})
    return images


async def test_all_platforms_of_an_index():
    source, destination = MemoryStore(), MemoryStore()
    images = put_multi_platform(source)
    result = await convert(source, destination)
    assert result.descriptor.media_type == OCI_INDEX
    index = index_of(destination)
    assert index.annotations == {"org.example": "index"}
    amd64, arm64, first, second = index.manifests
    assert platform_of(amd64).architecture == "amd64"
    assert platform_of(amd64).os_features == ("erofs",)
    assert platform_of(arm64).architecture == "arm64"
    assert platform_of(arm64).os_features == ("erofs",)
    for attestation, converted in ((first, amd64), (second, arm64)):
        assert platform_of(attestation).os == "unknown"
        assert platform_of(attestation).os_features == ()
        assert attestation.annotations == {
            "vnd.docker.reference.digest": str(converted.digest),
            "vnd.docker.reference.type": "attestation-manifest",
        }
        assert source.content[attestation.digest] == destination.content[attestation.digest]
        carried = decode_manifest(source.content[attestation.digest], OCI_MANIFEST)
        for blob in (carried.config, *carried.layers):
            assert blob.digest in destination.content
    assert [image.source for image in result.images] == [image.digest for image in images]
    assert len([note for note in result.notes if "before conversion" in note]) == 2
    assert any("left out: windows/amd64" in note for note in result.notes)
    shared = [image.layers[0].descriptor.digest for image in result.images]
    assert shared[0] == shared[1]
    assert len(set(source.opened)) == len(source.opened), "shared layers are read once"


async def test_the_name_comes_last():
    source, destination = MemoryStore(), MemoryStore()
    put_multi_platform(source)
    await convert(source, destination)
    steps = [step for step, _ in destination.log]
    assert steps[-2:] == ["manifest", "tag"]
    assert steps.count("tag") == 1
    first_manifest = steps.index("manifest")
    layers = {
        layer.digest
        for entry in index_of(destination).manifests
        for layer in decode_manifest(destination.content[entry.digest], OCI_MANIFEST).layers
        if layer.media_type == ZSTD_LAYER
    }
    assert layers <= {digest for _, digest in destination.log[:first_manifest]}


async def test_one_platform_gives_a_single_image():
    source, destination = MemoryStore(), MemoryStore()
    images = put_multi_platform(source)
    options = replace(SMALL, platforms=(parse_platform("linux/arm64"),))
    result = await convert(source, destination, options)
    assert destination.named.media_type == OCI_MANIFEST
    assert [image.source for image in result.images] == [images[1].digest]
    assert destination.document(manifest_of(destination).config)["architecture"] == "arm64"


async def test_several_platforms_give_an_index_with_their_attestations():
    source, destination = MemoryStore(), MemoryStore()
    put_multi_platform(source)
    platforms = (parse_platform("amd64"), parse_platform("linux/arm64"))
    await convert(source, destination, replace(SMALL, platforms=platforms))
    index = index_of(destination)
    assert [platform_of(entry).os for entry in index.manifests] == [
        "linux",
        "linux",
        "unknown",
        "unknown",
    ]


async def test_a_platform_that_is_not_there():
    source = MemoryStore()
    put_multi_platform(source)
    options = replace(SMALL, platforms=(parse_platform("linux/s390x"),))
    with pytest.raises(NotFoundError, match="linux/s390x"):
        await convert(source, MemoryStore(), options)
    source.top = put_tar_image(source, TARS)
    with pytest.raises(ConversionError, match="is for linux/amd64, not for linux/s390x"):
        await convert(source, MemoryStore(), options)


async def test_docker_index():
    source, destination = MemoryStore(), MemoryStore()
    image = put_tar_image(source, TARS[:1])
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"}
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_INDEX,
            "manifests": [as_json(image) | {"platform": platform}],
        }
    ).encode()
    source.top = source.put(raw, DOCKER_INDEX)
    await convert(source, destination)
    assert destination.named.media_type == OCI_INDEX
    assert destination.document(destination.named)["manifests"][0]["platform"] == platform | {
        "os.features": ["erofs"]
    }


class TestRefusals:
    """What is refused, before or while layers are read; never a name in the end."""

    @pytest.fixture
    def destination(self):
        store = MemoryStore("destination")
        yield store
        assert store.top is None
        assert "tag" not in dict(store.log)

    @pytest.mark.parametrize("cut", [1, 100])
    async def test_truncated_gzip(self, destination, cut):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS, pack=lambda tar: gzip.compress(tar)[:-cut])
        with pytest.raises(ConversionError, match=r"layer sha256:.*gzip stream ends early"):
            await convert(source, destination)
        assert destination.content == {}

    async def test_truncated_tar(self, destination):
        source = MemoryStore()
        cut = TARS[0][:30_000]
        source.top = put_tar_image(source, [cut])
        with pytest.raises(ConversionError, match="layer sha256:"):
            await convert(source, destination)

    async def test_truncated_zstd_tar(self, destination):
        source = MemoryStore()
        padded = TARS[0] + bytes(200_000)
        layer = source.put(zstandard.compress(padded)[:-9], OCI_LAYER_TAR_ZSTD)
        source.top = put_image(source, [layer], [sha256(padded)])
        with pytest.raises(DigestMismatchError, match="its diff ID is"):
            await convert(source, destination)

    async def test_blob_with_another_digest(self, destination):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS[:1])
        layer = manifest_of(source).layers[0]
        other = bytearray(source.content[layer.digest])
        other[-20] ^= 1
        source.content[layer.digest] = bytes(other)
        with pytest.raises(ContentError, match=f"layer {layer.digest}: wanted .*found"):
            await convert(source, destination)

    async def test_blob_that_is_too_short(self, destination):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS[:1])
        layer = manifest_of(source).layers[0]
        source.content[layer.digest] = source.content[layer.digest][:-1]
        with pytest.raises(ContentError, match="ends early"):
            await convert(source, destination)

    @pytest.mark.parametrize("media_type", [OCI_LAYER_TAR, RAW_LAYER, ZSTD_LAYER])
    async def test_wrong_diff_id(self, destination, media_type):
        source = MemoryStore()
        blob = TARS[0] if media_type == OCI_LAYER_TAR else built(TARS[0])
        layer = source.put(blob, media_type)
        source.top = put_image(source, [layer], [sha256(b"other")])
        with pytest.raises(DigestMismatchError, match=f"its diff ID is {sha256(b'other')}"):
            await convert(source, destination)

    @pytest.mark.parametrize("media_type", [RAW_LAYER, ZSTD_LAYER])
    async def test_erofs_layer_that_is_none(self, destination, media_type):
        source = MemoryStore()
        layer = source.put(bytes(8192), media_type)
        source.top = put_image(source, [layer], [sha256(bytes(8192))])
        with pytest.raises(ConversionError, match="not an EROFS image"):
            await convert(source, destination)

    async def test_missing_layer(self, destination):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS)
        del source.content[manifest_of(source).layers[1].digest]
        with pytest.raises(NotFoundError, match="no sha256"):
            await convert(source, destination)

    @pytest.mark.parametrize("blobs", [0, 1, 2, 3])
    async def test_destination_fails(self, destination, blobs):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS)
        destination.refuse_blobs_after = blobs
        with pytest.raises(TransportError, match="disk is full"):
            await convert(source, destination)

    async def test_unknown_layer_type(self, destination):
        source = MemoryStore()
        layer = source.put(b"x", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
        source.top = put_image(source, [layer], [sha256(b"x")])
        with pytest.raises(ConversionError, match=r"helm.*cannot be converted"):
            await convert(source, destination)

    async def test_unknown_erofs_encoding(self, destination):
        source = MemoryStore()
        layer = source.put(b"x", RAW_LAYER + "+xz")
        source.top = put_image(source, [layer], [sha256(b"x")])
        with pytest.raises(PlanError, match="unknown encoding"):
            await convert(source, destination)

    async def test_malformed_annotations(self, destination):
        source = MemoryStore()
        layer = replace(
            source.put(b"x", ZSTD_LAYER),
            annotations={"dev.containerd.erofs.zstd.chunk_table_offset": "-1"},
        )
        source.top = put_image(source, [layer], [sha256(b"x")])
        with pytest.raises(PlanError, match="is not an offset"):
            await convert(source, destination)

    async def test_no_container_image(self, destination):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS, config_type="application/vnd.example+json")
        with pytest.raises(ConversionError, match="no container image"):
            await convert(source, destination)
        source.top = put_index(source, [])
        with pytest.raises(ConversionError, match="no Linux image"):
            await convert(source, destination)

    @pytest.mark.parametrize(
        ("config", "kind", "message"),
        [
            ({"rootfs": {"diff_ids": []}}, ConversionError, "names 0 diff IDs"),
            ({"rootfs": None}, ContentError, "rootfs"),
            ({"rootfs": {"diff_ids": "x"}}, ContentError, "diff_ids is not a list"),
            ({"rootfs": {"diff_ids": [1]}}, ContentError, "not a digest"),
            ({"os": "windows"}, ConversionError, "only Linux"),
            ({"os.features": "erofs"}, ContentError, "os.features"),
        ],
    )
    async def test_broken_configuration(self, destination, config, kind, message):
        source = MemoryStore()
        source.top = put_tar_image(source, TARS[:1], config=config)
        with pytest.raises(kind, match=message):
            await convert(source, destination)

    async def test_indexes_inside_each_other_without_end(self, destination):
        source = MemoryStore()
        put_multi_platform(source)
        for _ in range(4):
            source.top = put_index(source, [as_json(source.named)])
        with pytest.raises(ConversionError, match="more than 4 indexes inside each other"):
            await convert(source, destination)

    @pytest.mark.parametrize("stall_at", [0, 20_000])
    async def test_cancelled_while_the_source_stalls(self, destination, stall_at):
        source = MemoryStore()
        source.top = put_tar_image(source, tars(3, 200_000), pack=lambda tar: tar)
        source.stall_at = stall_at
        async with trio.open_nursery() as nursery:
            nursery.start_soon(convert, source, destination)
            await source.stalled.wait()
            nursery.cancel_scope.cancel()


async def test_existing_features_stay():
    source, destination = MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, TARS[:1], config={"os.features": ["a", "erofs"]})
    await convert(source, destination)
    assert destination.document(manifest_of(destination).config)["os.features"] == ["a", "erofs"]


def test_support_is_sound():
    """The images of these tests differ; else many of them would say little."""
    assert len({hashlib.sha256(built(tar)).digest() for tar in TARS}) == 3
