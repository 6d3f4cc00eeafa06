"""The images to measure with: Debian in a registry, and one large file in compressed EROFS."""

import contextlib
import gzip
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.system import run
from tests.support.images import CACHE, TAG, debian_layer, three_layers
from tests.support.registry_server import running_registry

KEPT = CACHE.parent / "benchmarks"
"""What is kept from run to run: a registry with the tar image."""

LAYOUTS = {
    "lz4": ("-zlz4",),
    "lz4-64k": ("-zlz4", "-C65536"),
    "zstd-64k": ("-zzstd", "-C65536"),
}
"""Options of mkfs.erofs by the name of the image."""

PIECE_BYTES = 1 << 20


class NotAvailableError(Exception):
    """This machine cannot make an image; the message says why."""


@dataclass(frozen=True)
class DebianImage:
    """Debian with numpy and two more layers, in every form that is needed."""

    tar: str
    """In the registry, as skopeo pushed it."""
    seekable: str
    """In the registry, as lazyfs converted it."""
    layers: list[Path]
    """Decoded: EROFS images, the lowest layer first."""
    large: Path
    """Its largest file, below its root; the lowest layer has it."""


@contextlib.contextmanager
def debian_image(folder: Path) -> Iterator[DebianImage]:
    """Run a registry that has the image, and decode its layers into ``folder``."""
    with running_registry(KEPT) as registry:
        tar, seekable = f"{registry.host}/debian:tar", f"{registry.host}/debian:seekable"
        pushed = registry.storage / "pushed"
        if not pushed.exists():
            source = f"oci:{three_layers(target=folder / 'tar')}:{TAG}"
            options = ("--quiet", "--dest-tls-verify=false")
            run("skopeo", "copy", *options, source, f"docker://{tar}")
            pushed.touch()
        run(sys.executable, "-m", "lazyfs", "convert", "--quiet", tar, seekable)
        layers = decode_layers(seekable, folder / "decoded")
        yield DebianImage(tar, seekable, layers, largest_file_of(layers[0], folder / "look"))


def decode_layers(image: str, folder: Path) -> list[Path]:
    """Pull a seekable image and decompress its layers, by skopeo and zstd."""
    layout = f"oci:{folder}:pulled"
    run("skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image}", layout)
    blobs = folder / "blobs/sha256"

    index = json.loads((folder / "index.json").read_text())
    manifest = blobs / index["manifests"][0]["digest"].removeprefix("sha256:")
    layers = []
    for number, layer in enumerate(json.loads(manifest.read_text())["layers"]):
        blob = blobs / layer["digest"].removeprefix("sha256:")
        decoded = folder / f"layer-{number}.erofs"
        run("zstd", "--decompress", "--quiet", "--no-progress", blob, "-o", decoded)
        layers.append(decoded)
    return layers


def largest_file_of(image: Path, mountpoint: Path) -> Path:
    """The largest file of an EROFS image, which is mounted for a look."""
    mountpoint.mkdir()
    run("mount", "-t", "erofs", "-o", "ro,loop", image, mountpoint)
    try:
        return largest_file(mountpoint)
    finally:
        run("umount", mountpoint)


def largest_file(root: Path) -> Path:
    """The largest regular file, relative to ``root``."""
    found = (0, root)
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size > found[0]:
                found = (status.st_size, path)
    return found[1].relative_to(root)


def compressed_image(name: str, size_bytes: int, folder: Path) -> Path:
    """An EROFS image with one file of real data, ``file``: the beginning of Debian's tar.

    Raises:
        NotAvailableError: the mkfs.erofs on PATH cannot make it.
    """
    options = LAYOUTS[name]
    algorithm = options[0].removeprefix("-z")
    if algorithm not in compressors():
        raise NotAvailableError(f"the mkfs.erofs on PATH cannot compress with {algorithm}")
    tree, image = folder / "large", folder / f"{name}.erofs"
    tree.mkdir()
    with gzip.open(debian_layer().path) as source, (tree / "file").open("wb") as target:
        while size_bytes and (piece := source.read(min(size_bytes, PIECE_BYTES))):
            size_bytes -= target.write(piece)
    run("mkfs.erofs", "--quiet", *options, image, tree)
    return image


def compressors() -> set[str]:
    """What the mkfs.erofs on PATH can compress with."""
    try:
        done = subprocess.run(["mkfs.erofs", "--help"], capture_output=True, text=True)
    except OSError as error:
        raise NotAvailableError(f"mkfs.erofs: {error}") from error
    words = (done.stdout + done.stderr).partition("compressors")[2].replace(",", " ").split()
    return {name for name in ("lz4", "zstd") if name in words}
