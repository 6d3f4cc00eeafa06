"""What a user can choose about unpacking."""

from dataclasses import dataclass
from enum import StrEnum


class TreeChoice(StrEnum):
    """Which dm-verity tree stands behind an unpacked image."""

    LAYER = "layer"
    """The one that the layer has; none if it has none."""
    CONTAINERD = "containerd"
    """One with SHA-256 and a salt of 32 zero bytes: the only kind that containerd mounts."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class UnpackOptions:
    """The choices for one run."""

    platform: str | None = None
    """``OS/ARCH[/VARIANT]``; None: this machine's."""
    tree: TreeChoice = TreeChoice.LAYER
    layers: tuple[int, ...] = ()
    """Only these, counted from 1 at the bottom; none: all."""
    jobs: int = 2
    """Threads that check and decompress."""
