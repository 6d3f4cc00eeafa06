"""What a verification found."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from lazyfs.errors import LazyfsError
from lazyfs.model import ByteRange
from registry.errors import RegistryError

MAX_LISTED = 100
"""Findings that are listed of a layer; the others are counted."""


class Kind(StrEnum):
    """What is broken."""

    MANIFEST = "manifest"
    """Index or manifest."""
    CONFIG = "config"
    PLAN = "annotations"
    """Media types, annotations and order of the layers."""
    BLOB = "blob"
    """It cannot be had, or does not have its digest."""
    TABLE = "chunk table"
    CHUNK = "chunk"
    TREE = "dm-verity"
    """The superblock, or the tree as a whole."""
    HASH_BLOCK = "hash block"
    DATA_BLOCK = "data block"
    DIFF_ID = "diff id"
    EROFS = "erofs"
    """A structure of the EROFS image."""
    CACHE = "cache"
    """A stored chunk or piece of a tree."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is broken."""

    kind: Kind
    message: str
    where: Mapping[str, int | str] = field(default_factory=dict)
    """Names and numbers of what is meant: ``chunk``, ``blob_offset``, ``path`` and so on."""


class Findings:
    """The findings of one layer, or of the image itself; any thread may add to them."""

    def __init__(self) -> None:
        self.listed: list[Finding] = []
        self.count = 0
        self._lock = threading.Lock()

    def add(self, kind: Kind, message: object, /, **where: int | str) -> None:
        """Add a finding; ``where`` as in ``Finding``."""
        with self._lock:
            self.count += 1
            if len(self.listed) < MAX_LISTED:
                self.listed.append(Finding(kind, str(message), where))

    @contextmanager
    def take(self, kind: Kind, /, **where: int | str) -> Iterator[None]:
        """Make a finding of what goes wrong in the block."""
        try:
            yield
        except (LazyfsError, RegistryError) as error:
            self.add(kind, error, **where)


def place(name: str, where: ByteRange) -> dict[str, int]:
    """A range as ``Finding.where`` has it."""
    return {f"{name}_offset": where.offset, f"{name}_bytes": where.length}


@dataclass(slots=True)
class Counts:
    """What was looked at."""

    blob_bytes: int = 0
    image_bytes: int = 0
    chunks: int = 0
    hash_blocks: int = 0
    data_blocks: int = 0
    inodes: int = 0
    directories: int = 0
    names: int = 0
    extents: int = 0


@dataclass(slots=True)
class LayerReport:
    """One layer."""

    number: int
    """From 1 at the bottom."""
    digest: str
    findings: Findings = field(default_factory=Findings)
    counts: Counts = field(default_factory=Counts)
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""


@dataclass(slots=True)
class Report:
    """All of it."""

    image: str
    digest: str = ""
    """Of the manifest."""
    findings: Findings = field(default_factory=Findings)
    """Those that are of no layer."""
    layers: list[LayerReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """How many things are broken."""
        return self.findings.count + sum(layer.findings.count for layer in self.layers)
