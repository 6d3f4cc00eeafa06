"""The layers of a source image: what each is, and what it may become. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from lazyfs.convert.hot import HotFiles, hot_files
from lazyfs.errors import ConversionError
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerPlan, plan_layer, plan_layers
from lazyfs.profile.document import Profile
from lazyfs.seekable.mediatypes import CHUNK_INDEX_LAYER, LayerEncoding, Layout, is_erofs_layer
from lazyfs.seekable.specannotations import Role, SpecAnnotations, parse_spec_annotations
from registry.digest import Digest
from registry.manifest import Descriptor
from registry.mediatype import GZIP_LAYERS, TAR_LAYERS, ZSTD_LAYERS

FOREIGN_LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
"""Layers that were not to be pushed to other registries; the specification has given them up."""

TARS = TAR_LAYERS | GZIP_LAYERS | ZSTD_LAYERS | FOREIGN_LAYERS


class LayerKind(Enum):
    """What a layer is to the converter."""

    TAR = auto()
    EROFS = auto()
    DEVICE = auto()
    """Bytes that a later image refers to; they must stay as they are."""


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """One layer, and its chunk index if that is a layer of its own."""

    descriptor: Descriptor
    diff_id: Digest
    kind: LayerKind
    lowest: bool = False
    """Whether it is a tar without a layer below, in a layout that wants to know."""
    index: Descriptor | None = None
    chain: str = ""
    """Names what lies below a tar, if anything does: it may depend on that."""
    hot: HotFiles | None = None
    """What is to be in front of its image."""

    def alone(self) -> "SourceLayer":
        """The same layer wherever it lies."""
        return replace(self, chain="")

    @property
    def annotations(self) -> SpecAnnotations:
        """What the EROFS image specification's annotations say."""
        return parse_spec_annotations(self.descriptor.annotations)

    def plan(self) -> LayerPlan:
        """How the EROFS layer would be read."""
        return plan_layer("layer", self.descriptor, self.index, VerifyMode.ALWAYS)

    def image_bytes(self) -> int | None:
        """How much of what the blob decodes to is the image; None: all of it."""
        annotations = self.annotations
        if annotations.hash_offset is not None:
            return annotations.hash_offset
        raw = is_erofs_layer(self.descriptor.media_type) is LayerEncoding.RAW
        return annotations.index_start if raw else None


def source_layers(
    layers: Sequence[Descriptor], diff_ids: Sequence[Digest | None], layout: Layout
) -> tuple[SourceLayer, ...]:
    """Sort the layers of one image.

    Args:
        layers: of the manifest.
        diff_ids: of each layer, as the configuration has them.
        layout: that they are to get.

    Raises:
        ConversionError: a layer cannot be converted, or not to this layout.
        PlanError: EROFS layers with malformed annotations, or in an order that means nothing.
    """
    kinds = [_kind(layer, layout) for layer in layers]
    if LayerKind.TAR not in kinds and layers:
        plan_layers(layers, VerifyMode.ALWAYS)
    found: list[SourceLayer] = []
    mountable = False
    chain = ""
    for number, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        if kind is None:
            continue
        following = layers[number + 1] if number + 1 < len(layers) else None
        is_index = following is not None and following.media_type == CHUNK_INDEX_LAYER
        diff_id = _diff_id(layer, diff_ids[number])
        found.append(
            SourceLayer(
                layer,
                diff_id,
                kind,
                lowest=layout is Layout.EROFS_SPEC and kind is LayerKind.TAR and not mountable,
                index=following if is_index else None,
                chain=chain if kind is LayerKind.TAR else "",
            )
        )
        chain = hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
        mountable = True
    return tuple(found)


def with_hot_files(layers: Sequence[SourceLayer], profile: Profile) -> tuple[SourceLayer, ...]:
    """The layers of one image, with what a profile says of each.

    Raises:
        ConversionError: a layer with hot files is an EROFS image, where they lie as they lie.
    """
    hot = hot_files(profile, len(layers))
    for layer, files in zip(layers, hot, strict=True):
        if files is not None and layer.kind is not LayerKind.TAR:
            raise ConversionError(
                f"layer {layer.descriptor.digest} is an EROFS image already, whose files stay "
                "where they are: convert from the tar image to have the profile's files in front"
            )
    return tuple(replace(layer, hot=files) for layer, files in zip(layers, hot, strict=True))


def _kind(layer: Descriptor, layout: Layout) -> LayerKind | None:
    """What a layer is; None for a chunk index, which belongs to the layer before it."""
    if layer.media_type == CHUNK_INDEX_LAYER:
        return None
    role = parse_spec_annotations(layer.annotations).role
    if role in (Role.DEVICE, Role.OVERLAY_DATA) and layout is not Layout.EROFS_SPEC:
        raise ConversionError(
            f"layer {layer.digest} has the role {role}, which --layout {layout} cannot express; "
            f"use --layout {Layout.EROFS_SPEC}"
        )
    if role is Role.DEVICE:
        return LayerKind.DEVICE
    if is_erofs_layer(layer.media_type) is not None:
        return LayerKind.EROFS
    if layer.media_type not in TARS:
        raise ConversionError(f"layer {layer.digest}: {layer.media_type!r} cannot be converted")
    return LayerKind.TAR


def _diff_id(layer: Descriptor, configured: Digest | None) -> Digest:
    """The diff ID, from the annotation before the configuration (section 5.2)."""
    annotated = parse_spec_annotations(layer.annotations).uncompressed_digest
    if annotated is not None:
        return Digest.parse(annotated)
    if configured is not None:
        return configured
    if is_erofs_layer(layer.media_type) is LayerEncoding.RAW:
        return layer.digest
    raise ConversionError(f"layer {layer.digest} has no diff ID")
