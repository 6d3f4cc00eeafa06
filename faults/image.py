"""The images of the suite: small, converted from tars by ``lazyfs convert``, kept in memory."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.fake_registry import FakeRegistry
from tests.support.lazy_mounts import convert
from tests.support.tiny_image import write_layout

REPOSITORY, TAG = "faults/image", "v1"
CHUNK = "64KiB"


def noise(seed: str, length: int) -> bytes:
    """Bytes that do not compress, always the same."""
    return random.Random(seed).randbytes(length)


WARM, ONCE, EVER, REST = "lower/warm", "upper/once", "upper/ever", "lower/rest"
FILES: Mapping[str, bytes] = {
    WARM: noise("warm", 150_000),
    ONCE: noise("once", 300_000),
    EVER: noise("ever", 300_000),
    REST: noise("rest", 400_000),
    "lower/text": b"lazyfs\n" * 50_000,
    "upper/empty": b"",
    "upper/short": b"a few bytes",
}
"""Each of the four is alone in most of its chunks, so that reading one fetches none of another."""

LARGE_FILES = 10
"""Files of 4 MiB of the image that is larger than what is read of a blob without ranges."""

MANY = 3000
"""Files of the image whose metadata takes several chunks."""


@dataclass(frozen=True)
class Image:
    """A converted image, as a registry has it."""

    manifest: bytes
    blobs: tuple[bytes, ...]
    """The layers, and the configuration."""
    layers: tuple[bytes, ...]
    files: Mapping[str, bytes]
    """What it is made of."""

    def registry(self) -> FakeRegistry:
        """A registry that has it."""
        return FakeRegistry(self.blobs, self.manifest)


def make_image(folder: Path, files: Mapping[str, bytes], *options: str) -> Image:
    """Convert an image of one layer for each top folder of ``files``."""
    tops = dict.fromkeys(name.partition("/")[0] for name in files)
    layers = [{n: data for n, data in files.items() if n.startswith(f"{top}/")} for top in tops]
    write_layout(folder / "tar", "tar", layers)
    result = convert(f"oci:{folder}/tar:tar", f"oci:{folder}/lazy:lazy", *options)

    def blob(digest: str) -> bytes:
        return (folder / "lazy/blobs" / digest.replace(":", "/")).read_bytes()

    manifest = blob(result["digest"])
    document = json.loads(manifest)
    found = tuple(blob(layer["digest"]) for layer in document["layers"])
    return Image(manifest, (*found, blob(document["config"]["digest"])), found, files)


def small_image(folder: Path) -> Image:
    """The image of most faults: two layers, a dozen chunks each."""
    return make_image(folder, FILES, "--chunk-size", CHUNK)


def large_image(folder: Path) -> Image:
    """An image of 40 MiB."""
    files = {f"large/{number}": noise(f"large{number}", 4 << 20) for number in range(LARGE_FILES)}
    return make_image(folder, files, "--chunk-size", "1MiB")


def image_of_many_files(folder: Path) -> Image:
    """An image with so many names that mounting does not fetch them all."""
    files = {f"many/{number:05}-{'x' * 80}": b"%d" % number for number in range(MANY)}
    return make_image(folder, {**files, **FILES}, "--chunk-size", CHUNK)
