"""What a conversion did, for the summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lazyfs.convert.hot import FrontLayout
from lazyfs.profile.document import Profile
from registry.digest import Digest
from registry.manifest import Descriptor


class LayerOutcome(StrEnum):
    """What became of a layer."""

    CONVERTED = "converted"
    """A tar became an EROFS image in a seekable blob."""
    WRAPPED = "wrapped"
    """An EROFS image was taken as it is, into a seekable blob."""
    REUSED = "reused"
    """The destination has what the same layer became before."""
    KEPT = "kept"
    """The blob was seekable already."""


@dataclass(frozen=True, slots=True)
class WrappedImage:
    """What is to be known of a finished blob."""

    digest: Digest
    size_bytes: int
    diff_id: Digest
    """SHA-256 of what the blob decodes to."""
    image_size_bytes: int
    chunks: int
    annotations: Mapping[str, str]
    """That its layout adds to the descriptor."""
    front: FrontLayout | None = None
    """What became of the hot files, if it has any."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer; sizes in bytes."""

    outcome: LayerOutcome
    source: Descriptor
    descriptor: Descriptor
    """Of the seekable blob, annotations included."""
    diff_id: Digest
    image_size_bytes: int | None
    """None for a kept layer: its table was not read."""
    chunks: int | None
    index: Descriptor | None = None
    """A chunk index that is a layer of its own and stands behind this one."""
    front: FrontLayout | None = None
    """As in ``WrappedImage``."""

    def layers(self) -> tuple[tuple[Descriptor, Digest], ...]:
        """What stands in the manifest, with diff IDs."""
        own = (self.descriptor, self.diff_id)
        return (own,) if self.index is None else (own, (self.index, self.index.digest))


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image, that is one platform."""

    platform: str
    source: Digest
    descriptor: Descriptor
    layers: tuple[LayerResult, ...]
    profile: Profile | None = None
    """What a start reads of it, if the conversion went by a profile."""
    missing_paths: int = 0
    """Paths of that profile which the image does not have."""


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """Everything that was pushed."""

    source: str
    destination: str
    descriptor: Descriptor
    """What the destination's name means now."""
    images: tuple[ImageResult, ...]
    notes: tuple[str, ...]
    """What a person should know."""
