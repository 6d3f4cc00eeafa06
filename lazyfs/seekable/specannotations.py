"""The annotations of the EROFS image specification (section 2.3)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lazyfs.errors import PlanError
from lazyfs.model import ByteRange
from lazyfs.seekable.digests import SIZES, algorithm_of
from lazyfs.seekable.mediatypes import CHUNK_INDEX_LAYER
from lazyfs.seekable.ondisk import INDEX_HEADER, SKIPPABLE_HEADER
from lazyfs.seekable.pointers import Pointers, TablePointer, TreePointer

PREFIX = "org.erofs."
INDEX_RANGE = PREFIX + "chunk-index.range"
INDEX_DIGEST = PREFIX + "chunk-index.digest"
INDEX_MEDIA_TYPE = PREFIX + "chunk-index.mediaType"
INDEX_TARGET = PREFIX + "chunk-index.target"
UNCOMPRESSED_DIGEST = PREFIX + "uncompressed-digest"
HASH_OFFSET = PREFIX + "dmverity.hash_offset"
ROOT_DIGEST = PREFIX + "dmverity.root_digest"
BLOCK_SIZE = PREFIX + "dmverity.block_size"
ROLE = PREFIX + "role"

KEYS = (
    INDEX_RANGE,
    INDEX_DIGEST,
    INDEX_MEDIA_TYPE,
    INDEX_TARGET,
    UNCOMPRESSED_DIGEST,
    HASH_OFFSET,
    ROOT_DIGEST,
    BLOCK_SIZE,
    ROLE,
)

DEFAULT_BLOCK_BYTES = 4096
MAX_VALUE = 2**63 - 1


class Role(StrEnum):
    """How a layer takes part in the image (section 2.4)."""

    DEVICE = "device"
    OVERLAY_LOWER = "overlay-lower"
    OVERLAY_DATA = "overlay-data"


@dataclass(frozen=True, slots=True)
class SpecAnnotations:
    """What the annotations of one layer say; offsets and sizes in bytes."""

    index_start: int | None = None
    """Where the embedded chunk index begins in the blob, with the header of its frame if any."""
    index_end: int | None = None
    """Where it ends; None: with the blob."""
    index_digest: bytes | None = None
    index_target: str | None = None
    """Of a standalone index: the digest of the layer that it belongs to."""
    uncompressed_digest: str | None = None
    hash_offset: int | None = None
    """Where the dm-verity tree begins in the image data, which is the size of the image."""
    root_digest: bytes | None = None
    block_size: int = DEFAULT_BLOCK_BYTES
    """Of data and hash blocks of the tree."""
    role: Role | None = None
    index_media_type: str = CHUNK_INDEX_LAYER

    def encode(self) -> dict[str, str]:
        """The annotations as a manifest carries them."""
        values: dict[str, str | None] = {
            INDEX_RANGE: None if self.index_start is None else f"{self.index_start}",
            INDEX_DIGEST: _digest_text(self.index_digest),
            INDEX_TARGET: self.index_target,
            UNCOMPRESSED_DIGEST: self.uncompressed_digest,
            HASH_OFFSET: None if self.hash_offset is None else str(self.hash_offset),
            ROOT_DIGEST: _digest_text(self.root_digest),
            BLOCK_SIZE: None if self.hash_offset is None else str(self.block_size),
            ROLE: self.role,
        }
        if self.index_start is not None:
            values[INDEX_MEDIA_TYPE] = self.index_media_type
            if self.index_end is not None:
                values[INDEX_RANGE] = f"{self.index_start}:{self.index_end}"
        return {key: str(value) for key, value in values.items() if value is not None}

    def has_known_index(self) -> bool:
        """Whether there is an embedded chunk index in the one format that is defined."""
        return self.index_start is not None and self.index_media_type == CHUNK_INDEX_LAYER

    def tree(self) -> TreePointer | None:
        """Where the dm-verity tree lies, if there is one."""
        if self.hash_offset is None or self.root_digest is None:
            return None
        return TreePointer(
            self.root_digest, self.hash_offset, in_content=True, block_size_bytes=self.block_size
        )

    def pointers(self, blob_size_bytes: int, *, compressed: bool) -> Pointers | None:
        """How the layer can be read in parts by its own blob alone; None if it cannot.

        Raises:
            PlanError: the chunk index does not lie in a blob of that size.
        """
        tree = self.tree()
        if self.index_start is None or not self.has_known_index():
            if tree is None or compressed:
                return None
            return Pointers(None, tree, blob_size_bytes, compressed=False)
        end = blob_size_bytes if self.index_end is None else self.index_end
        smallest = INDEX_HEADER.size_bytes + (SKIPPABLE_HEADER.size_bytes if compressed else 0)
        if not self.index_start + smallest <= end <= blob_size_bytes:
            raise PlanError(
                f"chunk index from {self.index_start} to {end} does not lie in a blob of "
                f"{blob_size_bytes} bytes"
            )
        where = ByteRange(self.index_start, end - self.index_start)
        table = TablePointer(where, framed=compressed, digest=self.index_digest)
        return Pointers(table, tree, self.index_start, compressed=compressed)


def parse_spec_annotations(annotations: Mapping[str, str]) -> SpecAnnotations:
    """What the annotations of a layer say; unknown ones mean nothing.

    Raises:
        PlanError: a value is malformed, or half of what says that there is a dm-verity tree is
            missing. Nothing is dropped silently: that would switch verification off.
    """
    start, end = _range(annotations)
    hash_offset = _number(annotations, HASH_OFFSET)
    root_digest = _digest(annotations, ROOT_DIGEST)
    if (hash_offset is None) != (root_digest is None):
        missing = HASH_OFFSET if hash_offset is None else ROOT_DIGEST
        raise PlanError(f"annotation {missing} is missing")
    block_size = _number(annotations, BLOCK_SIZE)
    block_size = DEFAULT_BLOCK_BYTES if block_size is None else block_size
    if hash_offset is not None and (block_size == 0 or not hash_offset or hash_offset % block_size):
        raise PlanError(
            f"annotations: dm-verity tree at {hash_offset}, which is no multiple of its blocks "
            f"of {block_size} bytes"
        )
    return SpecAnnotations(
        index_start=start,
        index_end=end,
        index_digest=_digest(annotations, INDEX_DIGEST),
        index_target=_digest_text(_digest(annotations, INDEX_TARGET)),
        uncompressed_digest=_digest_text(_digest(annotations, UNCOMPRESSED_DIGEST)),
        hash_offset=hash_offset,
        root_digest=root_digest,
        block_size=block_size,
        role=_role(annotations),
        index_media_type=annotations.get(INDEX_MEDIA_TYPE, CHUNK_INDEX_LAYER),
    )


def _role(annotations: Mapping[str, str]) -> Role | None:
    value = annotations.get(ROLE)
    try:
        return None if value is None else Role(value)
    except ValueError:
        raise PlanError(f"annotation {ROLE}: unknown role {value!r:.40}") from None


def _range(annotations: Mapping[str, str]) -> tuple[int | None, int | None]:
    value = annotations.get(INDEX_RANGE)
    if value is None:
        return None, None
    start, colon, end = value.partition(":")
    return _as_number(INDEX_RANGE, start), _as_number(INDEX_RANGE, end) if colon else None


def _number(annotations: Mapping[str, str], key: str) -> int | None:
    value = annotations.get(key)
    return None if value is None else _as_number(key, value)


def _as_number(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or int(text) > MAX_VALUE:
        raise PlanError(f"annotation {key} is not a number: {text[:40]!r}")
    return int(text)


def _digest(annotations: Mapping[str, str], key: str) -> bytes | None:
    value = annotations.get(key)
    if value is None:
        return None
    algorithm, _, encoded = value.partition(":")
    if algorithm not in SIZES:
        raise PlanError(f"annotation {key} is not a sha256 or sha512 digest: {value[:40]!r}")
    if not re.fullmatch("[0-9a-f]*", encoded) or len(encoded) != 2 * SIZES[algorithm]:
        raise PlanError(f"annotation {key} is not a digest: {value[:40]!r}")
    return bytes.fromhex(encoded)


def _digest_text(digest: bytes | None) -> str | None:
    return None if digest is None else f"{algorithm_of(digest)}:{digest.hex()}"
