"""Layers of the EROFS image specification, read and written straight from its text.

Source: the EROFS image layer format specification, sections 2.3 and 3.1 to 3.5. Nothing but
``struct``, ``hashlib``, zstandard's one-shot functions and veritysetup is used.
"""

import hashlib
import json
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

RAW = "application/vnd.erofs"
ZSTD = "application/vnd.erofs+zstd"
INDEX = "application/vnd.erofs.chunk-index.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"

MAGIC = bytes([0xCD, 0xE4, 0xEC, 0x67])
HEADER = struct.Struct("<4sBBHQIBB10s")
SKIPPABLE = struct.Struct("<II")
SIZES = {None: 0, "sha256": 32, "sha512": 64}
COMPRESSION_NONE, COMPRESSION_ZSTD = 0, 1


class Entry(NamedTuple):
    block_offset: int
    uncompressed_offset: int
    checksum: bytes


@dataclass(frozen=True)
class ChunkIndex:
    """A decoded chunk index."""

    compression: int
    size: int
    algorithm: str | None
    entries: list[Entry]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def read_index(payload: bytes) -> ChunkIndex:
    """Sections 3.4.1, 3.4.2 and 3.4.4, steps 1 to 3."""
    magic, version, compression, flags, size, count, family, hash_size, reserved = (
        HEADER.unpack_from(payload)
    )
    assert (magic, version, flags, reserved) == (MAGIC, 1, 0, bytes(10))
    assert compression in (COMPRESSION_NONE, COMPRESSION_ZSTD)
    assert (family, hash_size) in ((0, 0), (1, 32), (1, 64))
    entry_size = 16 + hash_size
    assert len(payload) == 32 + count * entry_size
    entries = []
    for number in range(count):
        at = 32 + number * entry_size
        block, uncompressed = struct.unpack_from("<QQ", payload, at)
        entries.append(Entry(block, uncompressed, payload[at + 16 : at + entry_size]))
    algorithm = {0: None, 32: "sha256", 64: "sha512"}[hash_size]
    return ChunkIndex(compression, size, algorithm, entries)


def embedded_index(blob: bytes, media_type: str, annotations: dict[str, str]) -> tuple[bytes, int]:
    """The payload of the index in a blob, and where the index section begins (section 2.3)."""
    start_text, _, end_text = annotations["org.erofs.chunk-index.range"].partition(":")
    start, end = int(start_text), int(end_text) if end_text else len(blob)
    assert end == len(blob), "an embedded index is the trailing section"
    if media_type == RAW:
        return blob[start:end], start
    magic, length = SKIPPABLE.unpack_from(blob, start)
    assert 0x184D2A50 <= magic <= 0x184D2A5F
    assert start + 8 + length == end
    return blob[start + 8 : end], start


def read_image_data(blob: bytes, index: ChunkIndex, index_start: int) -> bytes:
    """The image data, chunk by chunk (section 3.4.4, step 5)."""
    data = b""
    ends = [entry.block_offset for entry in index.entries[1:]] + [index_start]
    sizes = [entry.uncompressed_offset for entry in index.entries[1:]] + [index.size]
    for entry, end, uncompressed_end in zip(index.entries, ends, sizes, strict=True):
        assert entry.uncompressed_offset == len(data)
        length = uncompressed_end - entry.uncompressed_offset
        if index.compression == COMPRESSION_NONE:
            stored = blob[entry.block_offset : entry.block_offset + length]
            chunk = stored
        else:
            stored = blob[entry.block_offset : end]
            chunk = one_frame(stored)
        if index.algorithm is not None:
            assert hashlib.new(index.algorithm, stored).digest() == entry.checksum
        assert len(chunk) == length
        data += chunk
    assert len(data) == index.size
    return data


def one_frame(stored: bytes) -> bytes:
    """What exactly one zstd frame holds."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    data = frame.decompress(stored)
    assert frame.eof
    assert frame.unused_data == b""
    return data


def zstd_tool(blob: bytes) -> bytes:
    return subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout


@dataclass(frozen=True)
class Layer:
    """A layer's blob and its descriptor's annotations."""

    blob: bytes
    media_type: str = ZSTD
    annotations: dict[str, str] = field(default_factory=dict)
    diff_id: str = ""

    def described(self) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": digest_of(self.blob),
            "size": len(self.blob),
            "annotations": self.annotations,
        }

    def noted(self, **changes: str | None) -> "Layer":
        """The same with some annotations changed; ``__`` stands for a dot, ``_`` for a dash."""
        merged: dict[str, str | None] = {**self.annotations, **changes}
        kept = {key: value for key, value in merged.items() if value is not None}
        return Layer(self.blob, self.media_type, kept, self.diff_id)


def make_index(
    size: int, entries: Sequence[Entry], compression: int, algorithm: str | None
) -> bytes:
    """The bytes of an index."""
    family, hash_size = (0, 0) if algorithm is None else (1, SIZES[algorithm])
    header = HEADER.pack(MAGIC, 1, compression, 0, size, len(entries), family, hash_size, bytes(10))
    return header + b"".join(
        struct.pack("<QQ", block, uncompressed) + checksum
        for block, uncompressed, checksum in entries
    )


def make_layer(
    data: bytes,
    cuts: Sequence[int],
    *,
    compressed: bool = True,
    algorithm: str | None = "sha256",
    padding: int | None = None,
    annotations: dict[str, str] | None = None,
) -> tuple[Layer, Layer]:
    """A layer with an embedded index, and the same with a standalone one: blob and index.

    Args:
        data: the image data, the tree included.
        cuts: where chunks begin, 0 first.
        compressed: whether each chunk is a zstd frame.
        algorithm: of the checksums.
        padding: length of the payload of a skippable frame before the index.
        annotations: of the layer, beside those of the index.
    """
    ends = [*cuts[1:], len(data)]
    blob = b""
    entries = []
    for start, end in zip(cuts, ends, strict=True):
        stored = data[start:end]
        if compressed:
            stored = zstandard.ZstdCompressor(level=1).compress(stored)
        checksum = b"" if algorithm is None else hashlib.new(algorithm, stored).digest()
        entries.append(Entry(len(blob), start, checksum))
        blob += stored
    index = make_index(len(data), entries, int(compressed), algorithm)
    if padding is not None:
        blob += SKIPPABLE.pack(0x184D2A53, padding) + bytes(padding)
    media_type = ZSTD if compressed else RAW
    notes = dict(annotations or {})
    if compressed:
        notes["org.erofs.uncompressed-digest"] = digest_of(data)
    section = SKIPPABLE.pack(0x184D2A5A, len(index)) + index if compressed else index
    embedded = notes | {
        "org.erofs.chunk-index.range": str(len(blob)),
        "org.erofs.chunk-index.digest": digest_of(index),
    }
    whole = Layer(blob + section, media_type, embedded, digest_of(data))
    bare = Layer(blob, media_type, notes, digest_of(data))
    return whole, bare


def standalone_index(layer: Layer, whole: Layer, *, target: str | None = "") -> Layer:
    """The index of ``whole`` as a layer behind ``layer``, which is the same without it."""
    payload, _ = embedded_index(whole.blob, whole.media_type, whole.annotations)
    target = digest_of(layer.blob) if target == "" else target
    notes = {} if target is None else {"org.erofs.chunk-index.target": target}
    return Layer(payload, INDEX, notes, digest_of(payload))


def with_tree(
    folder: Path, image: bytes, algorithm: str = "sha256", block_size: int = 4096, salt: str = "-"
) -> tuple[bytes, dict[str, str]]:
    """Image data with a tree by veritysetup behind the image, and the annotations."""
    assert len(image) % block_size == 0
    path = folder / "image-and-tree"
    path.write_bytes(image)
    command: list[str | Path] = [
        "veritysetup",
        "format",
        f"--hash={algorithm}",
        f"--salt={salt}",
        f"--data-block-size={block_size}",
        f"--hash-block-size={block_size}",
        f"--data-blocks={len(image) // block_size}",
        f"--hash-offset={len(image)}",
        "--uuid=00000000-0000-4000-8000-000000000001",
        path,
        path,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("Root hash:"))
    return path.read_bytes(), {
        "org.erofs.dmverity.hash_offset": str(len(image)),
        "org.erofs.dmverity.root_digest": f"{algorithm}:{line.split()[-1]}",
        "org.erofs.dmverity.block_size": str(block_size),
    }


def write_layout(
    folder: Path, layers: Sequence[Layer], tag: str = "image", *, diff_ids: bool = True
) -> str:
    """An OCI layout folder with one image; its name."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"architecture": "amd64", "os": "linux", "os.features": ["erofs"]}
    if diff_ids:
        ids = [layer.diff_id or digest_of(layer.blob) for layer in layers]
        config["rootfs"] = {"type": "layers", "diff_ids": ids}
    raw_config = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of(raw_config), "size": len(raw_config)},
        "layers": [layer.described() for layer in layers],
    }
    raw = json.dumps(manifest).encode()
    for content in (raw_config, raw, *(layer.blob for layer in layers)):
        (blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)
    entry = {
        "mediaType": MANIFEST,
        "digest": digest_of(raw),
        "size": len(raw),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}:{tag}"
