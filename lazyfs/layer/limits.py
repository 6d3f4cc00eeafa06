"""What all layers of a run share."""

from dataclasses import dataclass

import trio

from lazyfs.layer.budget import ByteBudget


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a run."""

    workers: trio.CapacityLimiter
    """Threads that check, decompress and write."""
    requests: trio.CapacityLimiter
    """Requests under way."""
    budget: ByteBudget
    """What they hold in memory."""
