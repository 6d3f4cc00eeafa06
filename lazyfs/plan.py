"""What a manifest says about mounting an image: which layers, how each can be read and proven.

Pure decisions: nothing is fetched here. A layer that cannot be proven piece by piece is
planned as a whole (``LayerMode.WHOLE``), and the reason is kept for ``lazyfs status``.

The roles and the order of layers are those of the EROFS image specification (sections 2.4
and 3.8). containerd's layout has neither: all its layers are lower directories.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lazyfs.errors import PlanError
from lazyfs.model import ByteRange, VerifyMode
from lazyfs.seekable.annotations import parse_annotations
from lazyfs.seekable.mediatypes import (
    CHUNK_INDEX_LAYER,
    LayerEncoding,
    Layout,
    device_encoding,
    is_erofs_layer,
    layout_of,
)
from lazyfs.seekable.pointers import Pointers, TablePointer, TreePointer
from lazyfs.seekable.specannotations import Role, SpecAnnotations, parse_spec_annotations
from registry.digest import Digest
from registry.manifest import Descriptor

MAX_LAYERS = 500
"""More layers than this are refused; overlayfs itself stops at 500."""


class LayerMode(enum.Enum):
    """How the bytes of a layer are had."""

    SEEKABLE = "seekable"
    """In parts that digests or a dm-verity tree prove."""
    RAW = "raw"
    """By ranges of the blob, which is the image itself (only without verification)."""
    WHOLE = "whole"
    """All of it at mount, proven by the blob's digest."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer, or one blob that belongs to a layer, is to be read."""

    descriptor: Descriptor
    encoding: LayerEncoding
    mode: LayerMode
    pointers: Pointers | None
    """Given with ``LayerMode.SEEKABLE``."""
    why: str
    """Why it is lazy or not, for a person."""
    index: Descriptor | None = None
    """The blob that the chunk table lies in, if it is not the layer's own."""
    diff_id: Digest | None = None
    """Digest of what the blob decodes to, if its annotations say it."""
    tree: TreePointer | None = None
    """The dm-verity tree in what the blob decodes to, also where the blob is read whole."""
    devices: tuple["LayerPlan", ...] = ()
    """Blobs that hold data of this layer's image, in the order of its device table."""
    data: tuple["LayerPlan", ...] = ()
    """Images whose files this layer's image shows under other names (overlayfs's data-only
    lower layers), the first one first."""


def plan_layers(layers: Sequence[Descriptor], verify: VerifyMode) -> tuple[LayerPlan, ...]:
    """Plan the layers that make the tree, bottom layer first.

    Raises:
        PlanError: no layers, too many, one that is not EROFS, malformed annotations, or an
            order that means nothing.
    """
    if not layers:
        raise PlanError("the image has no layers")
    if len(layers) > MAX_LAYERS:
        raise PlanError(f"the image has {len(layers)} layers, at most {MAX_LAYERS} can be mounted")
    planner = _Planner(verify)
    for number, layer in enumerate(layers, 1):
        planner.add(f"layer {number}", layer, layers[number] if number < len(layers) else None)
    return planner.finish()


@dataclass(slots=True)
class _Planner:
    """Takes layers in their order; devices and data wait for the layer that uses them."""

    verify: VerifyMode
    plans: list[LayerPlan] = field(default_factory=list)
    devices: list[LayerPlan] = field(default_factory=list)
    data: list[LayerPlan] = field(default_factory=list)
    previous: Descriptor | None = None

    def add(self, what: str, layer: Descriptor, following: Descriptor | None) -> None:
        """Plan a layer; ``following`` may be its chunk index."""
        annotations = parse_spec_annotations(layer.annotations)
        if layer.media_type == CHUNK_INDEX_LAYER:
            self._check_index(what, annotations, last=following is None)
        else:
            self._place(annotations.role, plan_layer(what, layer, following, self.verify))
        self.previous = layer

    def finish(self) -> tuple[LayerPlan, ...]:
        """All plans, if nothing waits any more."""
        if self.devices or self.data or not self.plans:
            raise PlanError("the last layer is not an EROFS image that can be mounted")
        return tuple(self.plans)

    def _place(self, role: Role | None, plan: LayerPlan) -> None:
        """Give a plan its place in the image.

        Devices go to the next image, also where that has the role overlay-data (section 3.8);
        if that one uses none they are the following image's (section 11.3 has it so). Only the
        images can tell, so both get them here.
        """
        if role is Role.DEVICE:
            self.devices.append(plan)
        elif role is Role.OVERLAY_DATA:
            self.data.append(replace(plan, devices=tuple(self.devices)))
        else:
            plan = replace(plan, devices=tuple(self.devices), data=tuple(self.data))
            self.plans.append(plan)
            self.devices.clear()
            self.data.clear()

    def _check_index(self, what: str, annotations: SpecAnnotations, *, last: bool) -> None:
        if self.previous is None or last:
            raise PlanError(f"{what} is a chunk index, which can be neither the first nor the last")
        target = annotations.index_target
        if target is not None and target != str(self.previous.digest):
            raise PlanError(
                f"{what} is the chunk index of {target}, but stands behind {self.previous.digest}"
            )


def plan_layer(
    what: str, layer: Descriptor, following: Descriptor | None, verify: VerifyMode
) -> LayerPlan:
    """Plan a layer by itself.

    Args:
        what: names it in an error.
        layer: an EROFS image, or a blob with the role ``device``.
        following: what stands behind it in the manifest; may be its chunk index.
        verify: decides what is good enough.

    Raises:
        PlanError: neither of the two, or malformed annotations.
    """
    annotations = parse_spec_annotations(layer.annotations)
    encoding = is_erofs_layer(layer.media_type)
    if encoding is None and annotations.role is Role.DEVICE:
        encoding = device_encoding(layer.media_type)
    if encoding is None:
        raise PlanError(
            f"{what} is {layer.media_type!r:.100}, not EROFS: "
            'convert the image first ("lazyfs convert --help")'
        )
    index = following if following and following.media_type == CHUNK_INDEX_LAYER else None
    if annotations.has_known_index() or encoding is LayerEncoding.GZIP:
        index = None
    pointers = _pointers(layer, encoding, annotations, index)
    mode, why = _mode(encoding, annotations, pointers, verify)
    diff_id = annotations.uncompressed_digest
    return LayerPlan(
        descriptor=layer,
        encoding=encoding,
        mode=mode,
        pointers=pointers if mode is LayerMode.SEEKABLE else None,
        why=why,
        index=index,
        diff_id=None if diff_id is None else Digest.parse(diff_id),
        tree=annotations.tree(),
    )


def _pointers(
    layer: Descriptor,
    encoding: LayerEncoding,
    annotations: SpecAnnotations,
    index: Descriptor | None,
) -> Pointers | None:
    """How the blob can be read in parts; None if it cannot."""
    compressed = encoding is LayerEncoding.ZSTD
    if compressed and layout_of(layer.media_type) is Layout.CONTAINERD:
        containerd = parse_annotations(layer.annotations)
        if containerd is not None:
            return containerd.pointers(layer.size_bytes)
    if encoding is LayerEncoding.GZIP:
        return None
    if index is not None:
        table = TablePointer(ByteRange(0, index.size_bytes), framed=False, digest=index.digest.raw)
        return Pointers(table, annotations.tree(), layer.size_bytes, compressed)
    return annotations.pointers(layer.size_bytes, compressed=compressed)


def _mode(
    encoding: LayerEncoding,
    annotations: SpecAnnotations,
    pointers: Pointers | None,
    verify: VerifyMode,
) -> tuple[LayerMode, str]:
    """How to read a layer, and why so."""
    off = verify is VerifyMode.OFF
    if pointers is not None:
        if pointers.table is None:
            return LayerMode.SEEKABLE, "raw image, read by ranges and proven by its dm-verity tree"
        if pointers.table.digest is not None or pointers.tree is not None or off:
            return LayerMode.SEEKABLE, "seekable: there is a chunk table"
        return LayerMode.WHOLE, (
            "fetched whole: the manifest has no digest of the chunk index, and there is no "
            "dm-verity tree"
        )
    if annotations.index_start is not None and not annotations.has_known_index():
        return LayerMode.WHOLE, (
            f"fetched whole: the chunk index is an unknown {annotations.index_media_type!r:.80}"
        )
    if encoding is not LayerEncoding.RAW:
        return LayerMode.WHOLE, (
            "fetched whole: the blob has no chunk table, so it can only be decoded from its start"
        )
    if off:
        return LayerMode.RAW, ("raw image, read by ranges without any verification (--verify=off)")
    return LayerMode.WHOLE, (
        "fetched whole: a raw image has no digests of its parts, so only the digest of the "
        "whole blob can prove it (--verify=off would read it lazily)"
    )
