"""Local EROFS images, with and without devices, as sources of conversions."""

import hashlib
import json
from pathlib import Path

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert.erofsfiles import open_erofs_files
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.errors import ConversionError
from lazyfs.seekable.mediatypes import Layout
from registry.digest import Digest
from registry.errors import NotFoundError, RegistryError
from registry.manifest import Descriptor
from registry.platforms import Platform
from tests.support import spec_format as spec
from tests.support.erofs_files import golden_devices
from tests.support.memory_store import MemoryStore

CHUNK_BYTES = 10_000
PLATFORM = Platform("linux", "riscv64")
SPEC = ConvertOptions(layout=Layout.EROFS_SPEC, chunk_size_bytes=8192, platforms=(PLATFORM,))


def write(folder: Path, *contents: bytes) -> list[str]:
    paths = [folder / f"{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


async def converted(paths: list[str], options: ConvertOptions = SPEC) -> MemoryStore:
    store = MemoryStore()
    async with open_erofs_files("erofs:some", paths, PLATFORM, CHUNK_BYTES) as source:
        await convert_image(source, store, options, SilentProgress())
    return store


async def test_devices_are_layers_with_an_index(tmp_path):
    image, device = golden_devices("device")
    other = bytes(range(256)) * 100
    store = await converted(write(tmp_path, image, device, other))
    manifest = store.document(store.named)
    kinds = [layer["mediaType"] for layer in manifest["layers"]]
    assert kinds == ["application/octet-stream", spec.INDEX] * 2 + [spec.ZSTD]
    for number, content in enumerate((device, other)):
        layer, described = manifest["layers"][2 * number : 2 * number + 2]
        assert layer["digest"] == spec.digest_of(content)
        assert layer["annotations"] == {"org.erofs.role": "device"}
        assert described["annotations"]["org.erofs.chunk-index.target"] == layer["digest"]
        index = spec.read_index(store.content[Digest.parse(described["digest"])])
        assert (index.compression, index.algorithm) == (spec.COMPRESSION_NONE, "sha256")
        assert len(index.entries) == -(-len(content) // CHUNK_BYTES)
        assert spec.read_image_data(content, index, len(content)) == content
    top = manifest["layers"][-1]
    decoded = spec.zstd_tool(store.content[Digest.parse(top["digest"])])
    assert decoded.startswith(image)
    config = json.loads(store.content[Digest.parse(manifest["config"]["digest"])])
    assert (config["os"], config["architecture"]) == ("linux", "riscv64")
    assert config["os.features"] == ["erofs"]
    digests = [layer["digest"] for layer in manifest["layers"][:-1]]
    assert config["rootfs"]["diff_ids"] == [*digests, spec.digest_of(decoded)]


@pytest.mark.parametrize("layout", Layout)
async def test_one_file_is_an_image_of_one_layer(tmp_path, layout):
    [image] = golden_devices("lz4")
    store = await converted(write(tmp_path, image), ConvertOptions(layout=layout))
    [layer] = store.document(store.named)["layers"]
    decoded = spec.zstd_tool(store.content[Digest.parse(layer["digest"])])
    assert hashlib.sha256(decoded[: len(image)]).digest() == hashlib.sha256(image).digest()


async def test_what_cannot_be(tmp_path):
    image, device = golden_devices("device")
    with pytest.raises(ConversionError, match="use --layout erofs-spec"):
        await converted(write(tmp_path, image, device), ConvertOptions())
    with pytest.raises(ConversionError, match="an empty file cannot be a device"):
        await converted(write(tmp_path, image, b""))
    with pytest.raises(ConversionError, match="not an EROFS image"):
        await converted(write(tmp_path, device, device))
    with pytest.raises(RegistryError, match="no such file"):
        await converted([str(tmp_path / "missing")])
    with pytest.raises(RegistryError, match="not a regular file"):
        await converted([str(tmp_path)])


async def test_other_content_is_not_there(tmp_path):
    [image] = golden_devices("lz4")
    missing = Descriptor("application/octet-stream", Digest.of(b"x"), 1)
    async with open_erofs_files("erofs:x", write(tmp_path, image), PLATFORM, 4096) as source:
        with pytest.raises(NotFoundError, match="erofs:x: no sha256"):
            await source.open_blob(missing)
        assert source.hosts() == ()
