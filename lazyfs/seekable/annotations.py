"""The annotations of containerd's seekable layers.

The annotations are where trust enters: the manifest's digest covers them, and they carry
the digests of the chunk table and of the dm-verity tree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lazyfs.errors import PlanError
from lazyfs.model import ByteRange
from lazyfs.seekable.digests import SIZES, algorithm_of
from lazyfs.seekable.ondisk import SKIPPABLE_HEADER, TABLE_HEADER
from lazyfs.seekable.pointers import Pointers, TablePointer, TreePointer

CHUNK_TABLE_OFFSET = "dev.containerd.erofs.zstd.chunk_table_offset"
CHUNK_DIGEST = "dev.containerd.erofs.zstd.chunk_digest"
VERITY_OFFSET = "dev.containerd.erofs.dmverity.offset"
ROOT_DIGEST = "dev.containerd.erofs.dmverity.root_digest"

KEYS = (CHUNK_TABLE_OFFSET, CHUNK_DIGEST, VERITY_OFFSET, ROOT_DIGEST)

MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SeekableAnnotations:
    """Where the metadata frames of a seekable layer begin, and their digests."""

    chunk_table_offset: int
    """Bytes from the start of the blob to the magic of the chunk table's frame."""
    chunk_digest: bytes
    """SHA-512 of the chunk table (the payload of its frame)."""
    verity_offset: int | None = None
    """Bytes from the start of the blob to the magic of the dm-verity frame."""
    root_digest: bytes | None = None
    """Root of the dm-verity tree (64 bytes: SHA-512, 32: SHA-256); given with the offset."""

    def encode(self) -> dict[str, str]:
        """The annotations as a manifest carries them."""
        annotations = {
            CHUNK_TABLE_OFFSET: str(self.chunk_table_offset),
            CHUNK_DIGEST: f"sha512:{self.chunk_digest.hex()}",
        }
        if self.verity_offset is not None and self.root_digest is not None:
            algorithm = algorithm_of(self.root_digest)
            annotations[VERITY_OFFSET] = str(self.verity_offset)
            annotations[ROOT_DIGEST] = f"{algorithm}:{self.root_digest.hex()}"
        return annotations

    def pointers(self, blob_size_bytes: int) -> Pointers:
        """How a blob of that size is read in parts.

        Usually the table fills its space, so that one request gets header and table.

        Raises:
            PlanError: table or tree do not lie in the blob.
        """
        start = self.chunk_table_offset
        end = blob_size_bytes if self.verity_offset is None else self.verity_offset
        smallest = SKIPPABLE_HEADER.size_bytes + TABLE_HEADER.size_bytes
        if not start + smallest <= end <= blob_size_bytes:
            raise PlanError(
                f"chunk table at {start} does not fit before {end} in a blob of "
                f"{blob_size_bytes} bytes"
            )
        where = ByteRange(start, end - start)
        table = TablePointer(where, framed=True, digest=self.chunk_digest)
        if self.verity_offset is None or self.root_digest is None:
            return Pointers(table, None, start, compressed=True)
        if blob_size_bytes - self.verity_offset < SKIPPABLE_HEADER.size_bytes:
            raise PlanError(
                f"dm-verity frame at {self.verity_offset} passes the end of a blob of "
                f"{blob_size_bytes} bytes"
            )
        tree = TreePointer(self.root_digest, self.verity_offset, in_content=False)
        return Pointers(table, tree, start, compressed=True)


def parse_annotations(annotations: Mapping[str, str]) -> SeekableAnnotations | None:
    """What the annotations of a layer say, or None when they name no chunk table.

    Raises:
        PlanError: a value is malformed, or one is missing beside the others. Nothing is
            dropped silently: that would be a way to switch verification off.
    """
    if not any(key in annotations for key in KEYS):
        return None
    table_offset = _offset(annotations, CHUNK_TABLE_OFFSET)
    chunk_digest = _digest(annotations, CHUNK_DIGEST, ("sha512",))
    if VERITY_OFFSET not in annotations and ROOT_DIGEST not in annotations:
        return SeekableAnnotations(table_offset, chunk_digest)
    verity_offset = _offset(annotations, VERITY_OFFSET)
    root_digest = _digest(annotations, ROOT_DIGEST, tuple(SIZES))
    if verity_offset <= table_offset:
        raise PlanError(
            f"annotations: dm-verity frame at {verity_offset} is not behind the chunk table "
            f"at {table_offset}"
        )
    return SeekableAnnotations(table_offset, chunk_digest, verity_offset, root_digest)


def _value(annotations: Mapping[str, str], key: str) -> str:
    value = annotations.get(key)
    if not isinstance(value, str):
        raise PlanError(f"annotation {key} is missing")
    return value


def _offset(annotations: Mapping[str, str], key: str) -> int:
    value = _value(annotations, key)
    if not re.fullmatch(r"[0-9]{1,19}", value) or int(value) > MAX_OFFSET:
        raise PlanError(f"annotation {key} is not an offset: {value[:40]!r}")
    return int(value)


def _digest(annotations: Mapping[str, str], key: str, algorithms: tuple[str, ...]) -> bytes:
    value = _value(annotations, key)
    algorithm, _, encoded = value.partition(":")
    if algorithm not in algorithms:
        raise PlanError(
            f"annotation {key} is not a {' or '.join(algorithms)} digest: {value[:40]!r}"
        )
    if not re.fullmatch("[0-9a-f]*", encoded) or len(encoded) != 2 * SIZES[algorithm]:
        raise PlanError(f"annotation {key} is not a digest: {value[:40]!r}")
    return bytes.fromhex(encoded)
