"""Sources that are not plain: layers of odd kinds, indexes in indexes, what speaks of images."""

import gzip
import json
from typing import Any

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult
from lazyfs.convert.sourcelayers import FOREIGN_LAYERS
from lazyfs.seekable.mediatypes import ZSTD_LAYER, Layout
from registry.manifest import Descriptor, decode_index, decode_manifest
from registry.mediatype import OCI_INDEX, OCI_MANIFEST
from registry.platforms import parse_platform
from tests.support import tar_samples as tars
from tests.support.built import built
from tests.support.memory_store import (
    MemoryStore,
    as_json,
    put_image,
    put_index,
    put_tar_image,
    sha256,
)

TAR = tars.tar(tars.directory(b"./"), tars.file(b"a", b"1"))
NOTHING = tars.tar()


async def convert(source: MemoryStore, **options: Any) -> tuple[MemoryStore, ConversionResult]:
    destination = MemoryStore("destination")
    chosen = ConvertOptions(**options)
    return destination, await convert_image(source, destination, chosen, SilentProgress())


@pytest.mark.parametrize("media_type", sorted(FOREIGN_LAYERS))
async def test_layers_that_were_not_to_be_pushed_are_converted_with_a_note(media_type):
    source = MemoryStore()
    layer = source.put(gzip.compress(TAR), media_type, urls=("https://example.org/layer",))
    source.top = put_image(source, [layer], [sha256(TAR)])
    store, result = await convert(source)
    manifest = store.document(store.named)
    assert manifest["layers"][0]["mediaType"] == ZSTD_LAYER
    assert "urls" not in manifest["layers"][0]
    assert any(str(layer.digest) in note and "pushed elsewhere" in note for note in result.notes)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("empty", [b"", NOTHING, bytes(10240)])
async def test_empty_layers(empty, layout):
    source = MemoryStore()
    source.top = put_tar_image(source, [TAR, empty, empty, TAR, empty])
    _, result = await convert(source, layout=layout)
    layers = result.images[0].layers
    assert len(layers) == 5
    assert layers[1].descriptor.digest == layers[2].descriptor.digest
    assert layers[1].descriptor.digest == layers[4].descriptor.digest
    alone = MemoryStore()
    alone.top = put_tar_image(alone, [empty])
    _, single = await convert(alone)
    assert single.images[0].layers[0].image_size_bytes == len(built(NOTHING))


async def test_an_image_without_layers():
    source = MemoryStore()
    source.top = put_image(source, [], [])
    store, _ = await convert(source)
    assert store.document(store.named)["layers"] == []


def entry_of(descriptor: Descriptor, **fields: Any) -> dict[str, Any]:
    return as_json(descriptor) | fields


def platform(architecture: str, system: str = "linux") -> dict[str, str]:
    return {"os": system, "architecture": architecture}


def put_attestation(source: MemoryStore, subject: Descriptor | None) -> Descriptor:
    """A manifest with a statement, as BuildKit and cosign make them."""
    config = source.put(b"{}", "application/vnd.oci.empty.v1+json")
    statement = source.put(b'{"predicate": "of the tar image"}', "application/vnd.in-toto+json")
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.attestation",
        "config": as_json(config),
        "layers": [as_json(statement)],
    }
    if subject is not None:
        document["subject"] = as_json(subject)
    return source.put(json.dumps(document).encode(), OCI_MANIFEST)


async def test_indexes_inside_indexes_and_what_speaks_of_images():
    source = MemoryStore()
    arm = put_tar_image(source, [TAR], architecture="arm64")
    intel = put_tar_image(source, [TAR, NOTHING])
    attested = put_attestation(source, intel)
    reference = {"vnd.docker.reference.digest": str(arm.digest)}
    inner = put_index(
        source,
        [
            entry_of(intel, platform=platform("amd64")),
            entry_of(attested, platform=platform("unknown", "unknown")),
        ],
    )
    unbound = put_attestation(source, None)
    source.top = put_index(
        source,
        [
            entry_of(inner, annotations={"org.example": "kept"}),
            entry_of(arm, platform=platform("arm64")),
            entry_of(unbound, platform=platform("unknown", "unknown"), annotations=reference),
            {"mediaType": "application/x-unknown", "digest": f"sha256:{'0' * 64}", "size": 3},
        ],
    )
    store, result = await convert(source)
    outer = decode_index(store.content[store.named.digest], OCI_INDEX)
    assert [entry.media_type for entry in outer.manifests] == [OCI_INDEX] + [OCI_MANIFEST] * 2
    assert outer.manifests[0].annotations == {"org.example": "kept"}
    nested = decode_index(store.content[outer.manifests[0].digest], OCI_INDEX)
    assert {image.descriptor.digest for image in result.images} == {
        nested.manifests[0].digest,
        outer.manifests[1].digest,
    }
    moved = decode_manifest(store.content[nested.manifests[1].digest], OCI_MANIFEST)
    assert moved.subject is not None
    assert moved.subject.digest == nested.manifests[0].digest
    assert moved.layers[0].digest in store.content
    spoken_of = outer.manifests[2].annotations["vnd.docker.reference.digest"]
    assert spoken_of == str(outer.manifests[1].digest)
    assert store.content[unbound.digest] == source.content[unbound.digest]
    assert any("application/x-unknown" in note for note in result.notes)
    assert len([note for note in result.notes if "before conversion" in note]) == 2


async def test_a_platform_inside_an_index_inside_an_index():
    source = MemoryStore()
    arm = put_tar_image(source, [TAR], architecture="arm64")
    intel = put_tar_image(source, [TAR, NOTHING])
    inner = put_index(source, [entry_of(arm, platform=platform("arm64"))])
    source.top = put_index(
        source,
        [
            entry_of(inner, platform=platform("arm64")),
            entry_of(intel, platform=platform("amd64")),
        ],
    )
    store, result = await convert(source, platforms=(parse_platform("linux/arm64"),))
    assert store.named.media_type == OCI_MANIFEST
    assert [image.source for image in result.images] == [arm.digest]


async def test_an_image_with_a_subject_keeps_it():
    source = MemoryStore()
    plain = put_tar_image(source, [TAR])
    document = source.document(plain) | {"subject": as_json(plain)}
    source.top = source.put(json.dumps(document).encode(), OCI_MANIFEST)
    store, _ = await convert(source)
    assert store.document(store.named)["subject"]["digest"] == str(plain.digest)
