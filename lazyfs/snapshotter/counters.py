"""What the snapshotter has done, for its metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Since the snapshotter was started."""

    lazy: int = 0
    """Layers that became lazy snapshots."""
    fallbacks: int = 0
    """Layers that containerd was left to unpack."""
    failures: int = 0
    """Lazy layers that could not be mounted."""
    not_restored: int = 0
    """Lazy layers that were not mounted again at the start."""
    errors: int = 0
    """Requests of containerd that failed by a bug of ours."""
