"""Layer blobs taken apart by nothing but ``struct``: where their frames and proofs lie.

Source: the layout of containerd's seekable EROFS layers (descriptor annotations, chunk table,
dm-verity payload).
"""

import struct
from dataclasses import dataclass

PREFIX = "dev.containerd.erofs."
SKIPPABLE = struct.Struct("<II")
TABLE_HEADER = struct.Struct("<IIQIBH")
SHA512_BYTES = 64
ENTRY_BYTES = 8 + SHA512_BYTES
TABLE_MAGIC = 0xCDE4EC67


@dataclass(frozen=True)
class Part:
    """Bytes of the blob."""

    start: int
    end: int


@dataclass(frozen=True)
class LayerBlob:
    """The parts of one blob."""

    image_size: int
    chunk_size: int
    frames: list[Part]
    digests: list[bytes]
    table: Part
    """The payload of the table's frame."""
    verity: Part | None
    """The payload of the tree's frame."""
    root_digest: bytes | None


def take_apart(blob: bytes, annotations: dict[str, str]) -> LayerBlob:
    """Find the parts of a blob from what its descriptor says."""
    table = payload(blob, int(annotations[f"{PREFIX}zstd.chunk_table_offset"]))
    magic, version, image_size, chunk_size, algorithm, reserved = TABLE_HEADER.unpack_from(
        blob, table.start
    )
    assert (magic, version, algorithm, reserved) == (TABLE_MAGIC, 1, 1, 0)
    count = -(-image_size // chunk_size)
    assert table.end - table.start == TABLE_HEADER.size + count * ENTRY_BYTES
    starts, digests = [], []
    for number in range(count):
        at = table.start + TABLE_HEADER.size + number * ENTRY_BYTES
        starts.append(int.from_bytes(blob[at : at + 8], "little"))
        digests.append(blob[at + 8 : at + ENTRY_BYTES])
    ends = [*starts[1:], table.start - SKIPPABLE.size]
    verity = root = None
    if f"{PREFIX}dmverity.offset" in annotations:
        verity = payload(blob, int(annotations[f"{PREFIX}dmverity.offset"]))
        root = bytes.fromhex(annotations[f"{PREFIX}dmverity.root_digest"].removeprefix("sha512:"))
    frames = [Part(*ends) for ends in zip(starts, ends, strict=True)]
    return LayerBlob(image_size, chunk_size, frames, digests, table, verity, root)


def payload(blob: bytes, offset: int) -> Part:
    """The payload of the skippable frame at ``offset``."""
    magic, length = SKIPPABLE.unpack_from(blob, offset)
    assert magic & 0xFFFFFFF0 == 0x184D2A50
    start = offset + SKIPPABLE.size
    assert start + length <= len(blob)
    return Part(start, start + length)
