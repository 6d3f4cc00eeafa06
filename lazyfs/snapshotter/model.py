"""What a snapshot is, and the labels by which containerd and the snapshotter speak of layers."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

TARGET = "containerd.io/snapshot.ref"
"""Under which name containerd will look for the snapshot once it is committed: whoever prepares a
snapshot with this label can be told that it exists already."""

IMAGE_NAMES = (
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/remote/stargz.reference",
)
LAYER_DIGESTS = (
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/remote/stargz.digest",
)
MANIFEST_DIGEST = "containerd.io/snapshot/cri.manifest-digest"
"""What containerd's CRI plugin, its transfer service and its clients tell of the layer."""

LAZY = "containerd.io/snapshot/lazyfs.lazy"
"""``true`` or ``false``: whether the layer is mounted lazily ..."""
WHY = "containerd.io/snapshot/lazyfs.why"
"""... and why, for a person."""

MAX_LABEL_CHARACTERS = 4096
"""containerd's limit of a label with its value."""


class Kind(enum.Enum):
    """What can be done with a snapshot."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot as it is kept."""

    number: int
    """Names its folder; never used again."""
    name: str
    parent: str
    """Empty: it has none."""
    kind: Kind
    created_s: float
    updated_s: float
    labels: Mapping[str, str]
    layer: str | None = None
    """The lazy layer that it shows; None: it has files of its own."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes of the disk."""

    size_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Mount:
    """What containerd mounts to show a snapshot."""

    kind: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """Which layer of which image a snapshot is to become."""

    image: str
    manifest: str | None
    """Digest of the manifest that containerd follows, if it says so."""
    digest: str


def layer_request(labels: Mapping[str, str]) -> LayerRequest | None:
    """What labels say of the layer; None if they do not."""
    image = next((labels[name] for name in IMAGE_NAMES if name in labels), None)
    digest = next((labels[name] for name in LAYER_DIGESTS if name in labels), None)
    if not image or not digest:
        return None
    return LayerRequest(image, labels.get(MANIFEST_DIGEST), digest)
