"""Small images as OCI layout folders, written with nothing but json, tarfile and hashlib."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OCI = "application/vnd.oci.image"


def tar_layer(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class TinyImage:
    """What was written: digests as text, bytes as they are."""

    manifest: bytes
    config: bytes
    layers: Sequence[bytes]

    @property
    def digest(self) -> str:
        return sha256(self.manifest)


def write_layout(
    folder: Path,
    tag: str,
    layers: Sequence[Mapping[str, bytes]],
    architecture: str = "amd64",
    compress: bool = True,
) -> TinyImage:
    """Add an image to a layout folder, which is made when it is missing."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = sha256(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    tars = [tar_layer(files) for files in layers]
    packed = [gzip.compress(tar, mtime=0) if compress else tar for tar in tars]
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in tars]},
            "history": [{"created_by": "test"} for _ in tars],
        }
    ).encode()
    kind = f"{OCI}.layer.v1.tar+gzip" if compress else f"{OCI}.layer.v1.tar"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": put(config, f"{OCI}.config.v1+json"),
            "layers": [put(layer, kind) for layer in packed],
        }
    ).encode()
    entry = put(manifest, f"{OCI}.manifest.v1+json")
    entry["platform"] = {"os": "linux", "architecture": architecture}
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    path = folder / "index.json"
    text = path.read_text() if path.exists() else '{"schemaVersion": 2, "manifests": []}'
    index = json.loads(text)
    index["manifests"].append(entry)
    path.write_text(json.dumps(index))
    return TinyImage(manifest, config, packed)
