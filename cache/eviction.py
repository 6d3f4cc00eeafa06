"""Which chunks go when room is needed: the least recently used first."""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 4096
"""Chunks are charged in whole blocks, as file systems store them."""

EXACT_EVICTION_CHUNKS: Final = 256
"""Up to this many chunks a scan costs a few milliseconds: no more is evicted than must be."""

SLACK_PARTS: Final = 10
"""Above that, a tenth of the limit is freed at once, so that scans are rare."""


class StoredChunk(NamedTuple):
    """What eviction knows of one stored chunk."""

    name: str
    charged_bytes: int
    last_use_ns: int
    """Nanoseconds since the epoch."""


def charged_bytes(size_bytes: int) -> int:
    """What a file of ``size_bytes`` counts against the limit."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def eviction_target_bytes(limit_bytes: int, incoming_bytes: int, chunk_count: int) -> int:
    """How much may stay stored when ``incoming_bytes`` are to be added; never negative."""
    slack = limit_bytes // SLACK_PARTS if chunk_count > EXACT_EVICTION_CHUNKS else 0
    return max(0, limit_bytes - incoming_bytes - slack)


def eviction_order(chunks: Iterable[StoredChunk]) -> list[StoredChunk]:
    """The chunks, least recently used first; equals by name, so that the order is one."""
    return sorted(chunks, key=lambda chunk: (chunk.last_use_ns, chunk.name))


def evict(
    chunks: Iterable[StoredChunk], excess_bytes: int, remove: Callable[[StoredChunk], bool]
) -> list[StoredChunk]:
    """Remove least recently used chunks until ``excess_bytes`` are freed; those removed.

    ``remove`` answers whether it did: a chunk in use stays and the next one is tried. Fewer bytes
    are freed when nothing more can go; nothing is removed when nothing is to be freed.
    """
    removed: list[StoredChunk] = []
    for chunk in eviction_order(chunks):
        if excess_bytes <= 0:
            break
        if remove(chunk):
            removed.append(chunk)
            excess_bytes -= chunk.charged_bytes
    return removed
