"""What a manifest says about mounting an image: which layers, how each can be read and proven.

Pure decisions: nothing is fetched here. A layer that cannot be proven piece by piece is
planned as a whole (``LayerMode.WHOLE``), and the reason is kept for ``lazyfs status``.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.errors import PlanError
from lazyfs.model import VerifyMode
from lazyfs.seekable.annotations import (
    LayerEncoding,
    SeekableAnnotations,
    is_erofs_layer,
    parse_annotations,
)
from registry.manifest import Descriptor

MAX_LAYERS = 500
"""More layers than this are refused; overlayfs itself stops at 500."""


class LayerMode(enum.Enum):
    """How the bytes of a layer are had."""

    SEEKABLE = "seekable"
    """Chunk by chunk, by the chunk table in the blob."""
    RAW = "raw"
    """By ranges of the blob, which is the image itself (only without verification)."""
    WHOLE = "whole"
    """All of it at mount, proven by the blob's digest."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer is to be read."""

    descriptor: Descriptor
    encoding: LayerEncoding
    mode: LayerMode
    annotations: SeekableAnnotations | None
    why: str
    """Why it is lazy or not, for a person."""


def plan_layers(layers: Sequence[Descriptor], verify: VerifyMode) -> tuple[LayerPlan, ...]:
    """Plan each layer of a manifest, bottom layer first.

    Raises:
        PlanError: no layers, too many, one that is not EROFS, or malformed annotations.
    """
    if not layers:
        raise PlanError("the image has no layers")
    if len(layers) > MAX_LAYERS:
        raise PlanError(f"the image has {len(layers)} layers, at most {MAX_LAYERS} can be mounted")
    return tuple(_plan(number, layer, verify) for number, layer in enumerate(layers, 1))


def _plan(number: int, layer: Descriptor, verify: VerifyMode) -> LayerPlan:
    encoding = is_erofs_layer(layer.media_type)
    if encoding is None:
        raise PlanError(
            f"layer {number} is {layer.media_type}, not EROFS: "
            'convert the image first ("lazyfs convert --help")'
        )
    if encoding is LayerEncoding.ZSTD:
        annotations = parse_annotations(layer.annotations)
        if annotations is not None:
            why = "seekable: the blob has a chunk table"
            return LayerPlan(layer, encoding, LayerMode.SEEKABLE, annotations, why)
        why = "fetched whole: the blob has no chunk table, so it can only be decoded from its start"
        return LayerPlan(layer, encoding, LayerMode.WHOLE, None, why)
    if verify is VerifyMode.OFF:
        why = "raw image, read by ranges without any verification (--verify=off)"
        return LayerPlan(layer, encoding, LayerMode.RAW, None, why)
    why = (
        "fetched whole: a raw image has no digests of its parts, so only the digest of the "
        "whole blob can prove it (--verify=off would read it lazily)"
    )
    return LayerPlan(layer, encoding, LayerMode.WHOLE, None, why)
