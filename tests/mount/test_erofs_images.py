"""EROFS images of every feature, mounted as files and from a registry, beside the kernel's view."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.converted import push
from tests.support.erofs_files import (
    Facts,
    facts_of_tree,
    golden_devices,
    golden_facts,
    golden_names,
    make_image,
    packaged_mkfs,
)
from tests.support.images import LayerFile, digest_of, noise, write_layout
from tests.support.lazy_mounts import convert, lazyfs, mounted
from tests.support.mounting import needs_fuse
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.served import served

pytestmark = [pytest.mark.mount, needs_fuse]

EXPECTED = golden_facts()
EROFS = "application/vnd.erofs.layer.v1"
CHUNKS = "--chunk-size=64KiB"
ONE_IMAGE = [name for name in golden_names() if len(golden_devices(name)) == 1]


def assert_shown(found: Mapping[str, Facts], expected: Mapping[str, Facts]) -> None:
    assert found.keys() == expected.keys()
    for path, facts in expected.items():
        assert found[path] == facts, path


@pytest.mark.parametrize("name", golden_names())
def test_a_file_is_shown_as_by_the_kernel(name: str, tmp_path: Path):
    paths = [tmp_path / "image", tmp_path / "device"]
    for path, data in zip(paths, golden_devices(name), strict=False):
        path.write_bytes(data)
    image = f"erofs:{paths[0]}" + (f",device={paths[1]}" if paths[1].exists() else "")
    with served(image, tmp_path / "mnt") as mount:
        assert_shown(facts_of_tree(mount.path), EXPECTED[name])


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Iterator[RegistryServer]:
    with running_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


def layer_of(image: Path) -> LayerFile:
    digest = digest_of(image)
    return LayerFile(image, digest, image.stat().st_size, digest, EROFS)


def push_wrapped(images: Mapping[str, Path], registry: RegistryServer, folder: Path) -> None:
    """Have ``lazyfs convert`` make all images seekable at once; push each as an image."""
    write_layout(folder / "raw", [layer_of(image) for image in images.values()], "raw")
    convert(f"oci:{folder}/raw:raw", f"oci:{folder}/wrapped:x", CHUNKS)
    blobs = folder / "wrapped/blobs/sha256"

    def document(descriptor: dict) -> dict:
        found: dict = json.loads((blobs / descriptor["digest"].partition(":")[2]).read_text())
        return found

    [manifest] = json.loads((folder / "wrapped/index.json").read_text())["manifests"]
    manifest = document(manifest)
    diff_ids = document(manifest["config"])["rootfs"]["diff_ids"]
    for name, layer, diff_id in zip(images, manifest["layers"], diff_ids, strict=True):
        blob = LayerFile(
            blobs / layer["digest"].partition(":")[2],
            layer["digest"],
            layer["size"],
            diff_id,
            layer["mediaType"],
            layer["annotations"],
        )
        write_layout(folder / name, [blob], "x")
        push(folder / name, "x", f"{registry.host}/{name}:x")


@pytest.fixture(scope="module")
def wrapped(registry: RegistryServer, tmp_path_factory) -> str:
    """Where the golden images are, each a seekable layer."""
    folder = tmp_path_factory.mktemp("wrapped")
    images = {}
    for name in ONE_IMAGE:
        images[name] = folder / f"{name}.erofs"
        images[name].write_bytes(golden_devices(name)[0])
    push_wrapped(images, registry, folder)
    return registry.host


@pytest.mark.parametrize("name", ONE_IMAGE)
def test_a_layer_in_a_registry_is_shown_as_by_the_kernel(name: str, wrapped: str, tmp_path: Path):
    image = f"{wrapped}/{name}:x"
    with served(image, tmp_path / "mnt", "--cache-dir", tmp_path / "cache") as mount:
        assert_shown(facts_of_tree(mount.path), EXPECTED[name])


@pytest.mark.parametrize("name", sorted(set(golden_names()) - set(ONE_IMAGE)))
def test_devices_in_a_registry_are_shown_as_by_the_kernel(
    name: str, registry: RegistryServer, tmp_path: Path
):
    paths = [tmp_path / "image", tmp_path / "device"]
    for path, data in zip(paths, golden_devices(name), strict=True):
        path.write_bytes(data)
    image = f"{registry.host}/{name}:x"
    source = f"erofs:{paths[0]},device={paths[1]}"
    convert(source, image, "--layout=erofs-spec", "--chunk-size=4KiB")
    with mounted(image, tmp_path / "mnt", "--cache-dir", tmp_path / "cache") as mount:
        assert_shown(facts_of_tree(mount.path), EXPECTED[name])
        assert [layer["lazy"] for layer in mount.status()["layers"]] == [True, True]
    lazyfs("verify", image)


def test_a_read_of_a_device_fetches_a_part(registry: RegistryServer, tmp_path: Path):
    source, paths = tmp_path / "source", [tmp_path / "image", tmp_path / "device"]
    source.mkdir()
    for number in range(40):
        (source / f"{number}").write_bytes(noise(100_000, b"%d" % number))
    make_image(packaged_mkfs(), source, paths[0], "--chunksize=4096", f"--blobdev={paths[1]}")
    image = f"{registry.host}/device-in-part:x"
    names = f"erofs:{paths[0]},device={paths[1]}"
    convert(names, image, "--layout=erofs-spec", CHUNKS)
    with mounted(image, tmp_path / "mnt", "--cache-dir", tmp_path / "cache") as mount:
        assert (mount.path / "7").read_bytes() == (source / "7").read_bytes()
        assert mount.totals()["fetched_bytes"] < 1_000_000
    assert paths[1].stat().st_size >= 4_000_000


@pytest.mark.parametrize("options", [("-zlz4hc", "-C16384"), ("-zlz4hc", "-Eztailpacking")])
def test_a_read_of_a_compressed_layer_fetches_a_part(
    options: tuple[str, ...], registry: RegistryServer, tmp_path: Path
):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):  # each compresses to about a half
        half = noise(100_000 * (number + 1))[-100_000:]
        (source / f"{number}").write_bytes(half + half.hex().encode())
    image = tmp_path / "image"
    make_image(packaged_mkfs(), source, image, *options)
    size = image.stat().st_size
    assert size > 6_000_000
    name = f"lazy{options[1].lower().replace('-', '')}"
    push_wrapped({name: image}, registry, tmp_path)
    cache = os.fspath(tmp_path / "cache")
    with mounted(f"{registry.host}/{name}:x", tmp_path / "mnt", "--cache-dir", cache) as mount:
        assert (mount.path / "17").read_bytes() == (source / "17").read_bytes()
        totals = mount.totals()
        assert totals["errors"] == 0
        assert 0 < totals["fetched_bytes"] < size / 5
        [layer] = mount.status()["layers"]
        assert layer["lazy"]
