"""What was unpacked, for the summary."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from registry.digest import Digest


class Outcome(StrEnum):
    """What became of a layer."""

    UNPACKED = "unpacked"
    KEPT = "kept"
    """It was there already, and is right."""


class Sidecar(NamedTuple):
    """What containerd is told of a tree."""

    root_hash: str
    """Lower-case hexadecimal."""
    hash_offset: int
    """Of the tree's superblock in the file."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer; sizes in bytes."""

    number: int
    """From 1 at the bottom."""
    digest: Digest
    path: Path
    """Of ``layer.erofs``."""
    outcome: Outcome
    size_bytes: int
    disk_bytes: int
    """What the file takes on the disk; less than its size where it has holes."""
    sidecar: Sidecar | None
    chunks: int
    """0 for a layer that can only be decoded from its start."""
    resumed_chunks: int
    """Those that an earlier run had left."""
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class UnpackResult:
    """All layers that were asked for, bottom layer first."""

    image: str
    digest: Digest
    """Of the manifest."""
    layers: tuple[LayerResult, ...]
