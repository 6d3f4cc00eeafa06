"""Images of layers made by ``layer_builder``, as OCI layout folders that tests can damage.

The diff IDs come from ``zstd -dc``, which knows nothing of our code.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.layer_builder import (
    Layer,
    Node,
    device,
    directory,
    erofs_image,
    file,
    link,
    whiteout,
)

OCI = "application/vnd.oci.image"
TAG = "app"


def noise(size: int, seed: bytes = b"lazyfs") -> bytes:
    """Bytes that do not compress, the same ones every time."""
    return hashlib.shake_256(seed).digest(size)


def nodes(data_bytes: int = 300_000) -> dict[bytes, Node]:
    """A small tree with a bit of everything, and a file of ``data_bytes`` bytes."""
    many = {b"many/%03d" % number: file(b"%d" % number) for number in range(200)}
    return many | {
        b"": directory(),
        b"data/noise": file(noise(data_bytes)),
        b"data/zeros": file(bytes(200_000) + b"end"),
        b"data/text": file(b"some words\n" * 2000),
        b"data/empty": file(),
        b"deep/er/still": file(
            b"down here", xattrs={b"user.name": b"value", b"user.b": b"x" * 500}
        ),
        b"link": link(b"data/text"),
        b"null": device(1, 3),
        b"gone": whiteout(),
    }


def tree_image(data_bytes: int = 300_000) -> bytes:
    """An EROFS image of ``nodes``."""
    return erofs_image(nodes(data_bytes))


@dataclass(frozen=True)
class Layout:
    """An image in a folder."""

    folder: Path
    layers: Sequence[Layer]
    manifest: dict
    manifest_digest: str

    @property
    def name(self) -> str:
        """For ``lazyfs``."""
        return f"oci:{self.folder}:{TAG}"

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.folder / "blobs" / digest.replace(":", "/")

    def layer_blob(self, number: int = 1) -> Path:
        """The file of a layer's blob, counted from 1 at the bottom."""
        return self.blob(self.manifest["layers"][number - 1]["digest"])


def write_image(
    folder: Path, layers: Sequence[Layer], diff_ids: Sequence[str] | None = None
) -> Layout:
    """Write an image under ``TAG``.

    Args:
        folder: of the layout.
        layers: bottom layer first.
        diff_ids: what the configuration says; None: the truth.
    """
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(data: bytes, media_type: str) -> dict[str, object]:
        encoded = hashlib.sha256(data).hexdigest()
        (blobs / encoded).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}

    config = {
        "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [*map(diff_id, layers)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": put(json.dumps(config).encode(), f"{OCI}.config.v1+json"),
        "layers": [
            put(layer.blob, layer.media_type) | {"annotations": layer.annotations}
            for layer in layers
        ],
    }
    entry = put(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return Layout(folder, layers, manifest, str(entry["digest"]))


def content(layer: Layer) -> bytes:
    """What a blob decodes to, as any zstd decoder has it."""
    if not layer.media_type.endswith("+zstd"):
        return layer.blob
    return subprocess.run(
        ["zstd", "-dc"], input=layer.blob, check=True, capture_output=True, timeout=60
    ).stdout


def diff_id(layer: Layer) -> str:
    """The SHA-256 of a layer's content."""
    return f"sha256:{hashlib.sha256(content(layer)).hexdigest()}"


def flip(path: Path, offset: int, bit: int = 0x10) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ bit]))
