"""Images in a registry under test: pushed as tar by skopeo, converted by ``lazyfs convert``."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.lazy_mounts import convert
from tests.support.overlay_oracle import decode
from tests.support.registry_server import RegistryServer

COPY_WITHIN_S = 300


@dataclass(frozen=True)
class ConvertedImage:
    """A converted image, and what it is made of."""

    name: str
    """With the registry's host, as ``lazyfs`` wants it."""
    layout: Path
    """The OCI layout folder of the tar image that it was made from."""
    result: dict
    """What ``lazyfs convert --json`` said."""
    manifest: dict
    config: dict
    blobs: list[Path]
    """The layers' files in the registry, bottom layer first."""
    raw: list[Path]
    """The layers' images, decoded by ``zstd``."""

    def name_at(self, host: str) -> str:
        """Its name if its registry is reached by another way."""
        return f"{host}/{self.name.partition('/')[2]}"

    @property
    def blob_bytes(self) -> int:
        """Length of all layers as they lie in the registry."""
        return sum(layer["size"] for layer in self.manifest["layers"])

    def annotations(self, number: int) -> dict[str, str]:
        """Those of a layer's descriptor, counted from the bottom."""
        annotations = self.manifest["layers"][number]["annotations"]
        assert isinstance(annotations, dict)
        return annotations


def push(layout: Path, tag: str, name: str) -> None:
    """Copy an image from a folder to a registry, unchanged, by a program that is not ours."""
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"]
    command += [f"oci:{layout}:{tag}", f"docker://{name}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COPY_WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stderr


def push_and_convert(
    layout: Path,
    tag: str,
    repository: str,
    registry: RegistryServer,
    folder: Path,
    *options: str,
) -> ConvertedImage:
    """Push a tar image to ``REPOSITORY:tar`` and convert it to ``REPOSITORY:lazy``.

    Args:
        layout: where the tar image is, under ``tag``.
        folder: for the decoded layers; what is in it is removed.
        options: of ``lazyfs convert``.
    """
    source, name = (f"{registry.host}/{repository}:{tag}" for tag in ("tar", "lazy"))
    push(layout, tag, source)
    result = convert(source, name, *options)
    manifest = json.loads(registry.blob_path(result["digest"]).read_bytes())
    config = json.loads(registry.blob_path(manifest["config"]["digest"]).read_bytes())
    blobs = [registry.blob_path(layer["digest"]) for layer in manifest["layers"]]
    shutil.rmtree(folder, ignore_errors=True)
    raw = [decode(blob, folder / f"{number}.erofs") for number, blob in enumerate(blobs)]
    return ConvertedImage(name, layout, result, manifest, config, blobs, raw)
