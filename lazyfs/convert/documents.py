"""Configurations, manifests and indexes: read what the conversion needs, write the new ones.

Pure. What is not known is carried along; only what stops being true is changed: digests, sizes,
media types, diff IDs, and ``os.features``, which gets ``erofs`` so that a client that cannot
mount EROFS knows it beforehand (as containerd does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyfs.errors import ConversionError
from lazyfs.seekable import annotations as containerd
from lazyfs.seekable import specannotations as spec
from lazyfs.seekable.mediatypes import SPEC_ZSTD_LAYER, ZSTD_LAYER, Layout, is_erofs_layer
from lazyfs.seekable.specannotations import ROLE, Role
from registry.digest import Digest
from registry.errors import ContentError
from registry.jsondoc import Json, JsonObject, as_object, encode_json, parse_object
from registry.manifest import Descriptor, Index, Manifest
from registry.mediatype import CONFIGS, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from registry.platforms import Platform, decode_platform

EROFS_FEATURE = "erofs"
CONFIG_LIMIT_BYTES = 8 << 20

REFERENCE_DIGEST = "vnd.docker.reference.digest"
"""Annotation of an attestation's index entry: the manifest that it speaks of."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The configuration of an image (image-spec, config.md)."""

    document: JsonObject
    diff_ids: tuple[Digest | None, ...]
    """Of each layer; None where there is no list (EROFS image specification, section 5.2)."""
    platform: Platform

    def converted(self, diff_ids: Sequence[Digest]) -> bytes:
        """The configuration of the converted image."""
        document = dict(self.document)
        rootfs = dict(as_object(document.get("rootfs", {}), "configuration: rootfs"))
        rootfs["type"] = "layers"
        rootfs["diff_ids"] = [str(diff_id) for diff_id in diff_ids]
        document["rootfs"] = rootfs
        features: list[Json] = list(_with_erofs(self.platform).os_features)
        document["os.features"] = features
        return encode_json(document)


def decode_config(raw: bytes, layers: int) -> ImageConfig:
    """Read the configuration of an image of so many layers.

    Raises:
        ConversionError: it does not fit the manifest.
        ContentError: it is not a configuration.
    """
    document = parse_object(raw, "configuration", CONFIG_LIMIT_BYTES)
    rootfs = as_object(document.get("rootfs", {}), "configuration: rootfs")
    diff_ids = rootfs.get("diff_ids", [None] * layers)
    if not isinstance(diff_ids, list):
        raise ContentError("configuration: rootfs.diff_ids is not a list")
    if len(diff_ids) != layers:
        raise ConversionError(
            f"configuration names {len(diff_ids)} diff IDs, the manifest has {layers} layers"
        )
    return ImageConfig(
        document=document,
        diff_ids=tuple(
            None if diff_id is None else Digest.parse(str(diff_id)) for diff_id in diff_ids
        ),
        platform=replace(decode_platform(document, "configuration"), extra={}),
    )


def is_image(manifest: Manifest, entry: Descriptor) -> bool:
    """Whether a manifest is an image that can run, not an attestation or another artifact."""
    if entry.platform is not None and "unknown" in (entry.platform.os, entry.platform.architecture):
        return False
    return manifest.config.media_type in CONFIGS and not manifest.artifact_type


def converted_layer(
    source: Descriptor,
    layout: Layout,
    digest: Digest,
    size_bytes: int,
    annotations: Mapping[str, str],
) -> Descriptor:
    """The descriptor of a seekable blob; other annotations of the source stay."""
    stale = {*containerd.KEYS, *spec.KEYS}
    if layout is Layout.EROFS_SPEC:
        stale.remove(ROLE)
    kept = {key: value for key, value in source.annotations.items() if key not in stale}
    media_type = SPEC_ZSTD_LAYER if layout is Layout.EROFS_SPEC else ZSTD_LAYER
    return Descriptor(media_type, digest, size_bytes, kept | dict(annotations))


def with_roles(layers: Sequence[Descriptor]) -> list[Descriptor]:
    """Say of the images below the topmost that they are lower directories.

    By the EROFS image specification (section 3.6) a layer without a lower one has no whiteouts.
    """
    return [
        layer.annotated({ROLE: Role.OVERLAY_LOWER.value})
        if is_erofs_layer(layer.media_type) and ROLE not in layer.annotations
        else layer
        for layer in layers[:-1]
    ] + list(layers[-1:])


def converted_manifest(source: Manifest, config: bytes, layers: Sequence[Descriptor]) -> Manifest:
    """The manifest of a converted image."""
    descriptor = _replaced(source.config, OCI_CONFIG, config)
    return replace(source, media_type=OCI_MANIFEST, config=descriptor, layers=tuple(layers))


def converted_entry(source: Descriptor, raw: bytes, platform: Platform) -> Descriptor:
    """The index entry of a converted image.

    Args:
        source: the entry in the source's index.
        raw: the converted manifest.
        platform: from the configuration, used where the source's entry names none.
    """
    entry = _replaced(source, OCI_MANIFEST, raw)
    return replace(entry, platform=_with_erofs(source.platform or platform))


def converted_index(source: Index, entries: Sequence[Descriptor]) -> Index:
    """The index over converted entries."""
    return replace(source, media_type=OCI_INDEX, manifests=tuple(entries))


def reference_of(entry: Descriptor) -> Digest | None:
    """The manifest that an attestation's index entry speaks of.

    Raises:
        ContentError: the annotation is not a digest.
    """
    reference = entry.annotations.get(REFERENCE_DIGEST)
    return None if reference is None else Digest.parse(reference)


def with_reference(entry: Descriptor, target: Digest) -> Descriptor:
    """The same entry, speaking of another manifest."""
    return entry.annotated({REFERENCE_DIGEST: str(target)})


def _with_erofs(platform: Platform) -> Platform:
    if EROFS_FEATURE in platform.os_features:
        return platform
    return replace(platform, os_features=(*platform.os_features, EROFS_FEATURE))


def _replaced(source: Descriptor, media_type: str, raw: bytes) -> Descriptor:
    """The descriptor of new content in the place of old."""
    extra = {key: value for key, value in source.extra.items() if key != "data"}
    return replace(
        source,
        media_type=media_type,
        digest=Digest.of(raw),
        size_bytes=len(raw),
        urls=(),
        extra=extra,
    )
