"""The figures of an opened image that metrics are made of; nothing here is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cache.store import StoreStatistics
from lazyfs.layer.counters import LayerCounters
from registry.health import HostStatus


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """The store of chunks that the mount uses, and shares with others if it is on disk."""

    statistics: StoreStatistics
    """Since the daemon opened it, of this mount alone."""
    usage_bytes: int
    limit_bytes: int | None
    usable: bool
    """Whether it is on disk, and the disk does well."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A look at all counters."""

    image: str
    digest: str | None
    layers: Sequence[LayerCounters] = ()
    modes: Mapping[tuple[str, bool], int] = field(default_factory=dict)
    """Layers by mode and by whether they are lazy."""
    hosts: Sequence[HostStatus] = ()
    cache: CacheFigures | None = None
    size_bytes: int = 0
    """Of all layers together."""
