"""Descriptors, manifests and indexes (image-spec: descriptor.md, manifest.md, image-index.md).

Decoding keeps fields that it does not know, so that a document can be changed and written again
without loss. Encoding is deterministic: fields in the order of the specification, annotations and
unknown fields sorted. A digest is always taken of the raw bytes, never of a re-encoded document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from registry import mediatype
from registry.digest import Digest, verify
from registry.errors import ContentError, NotFoundError
from registry.jsondoc import (
    Json,
    JsonObject,
    as_object,
    encode_json,
    parse_object,
    sorted_map,
    take_list,
    take_size,
    take_string,
    take_string_map,
    take_strings,
)
from registry.platforms import (
    Platform,
    decode_platform,
    encode_platform,
    host_platform,
    parse_platform,
    rank,
)

__all__ = [
    "MANIFEST_LIMIT_BYTES",
    "Descriptor",
    "Index",
    "Manifest",
    "Platform",
    "choose_platform",
    "decode",
    "decode_descriptor",
    "decode_index",
    "decode_manifest",
    "describe",
    "encode_descriptor",
    "host_platform",
    "media_type_of",
    "parse_platform",
    "verify_content",
]

MANIFEST_LIMIT_BYTES = 4 << 20
"""Largest manifest or index taken (distribution-spec: registries should accept at least this)."""
LAYERS_LIMIT = 4096
"""Most layers of a manifest; overlayfs takes 500."""
INDEX_ENTRIES_LIMIT = 16384
URLS_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The handle to content: what it is, its digest and its size."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()
    extra: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """Fields that this client does not know, kept for rewriting."""

    @property
    def is_manifest(self) -> bool:
        """Whether the content is a ``Manifest``."""
        return self.media_type in mediatype.MANIFESTS

    @property
    def is_index(self) -> bool:
        """Whether the content is an ``Index``."""
        return self.media_type in mediatype.INDEXES

    def annotated(self, changes: Mapping[str, str | None]) -> "Descriptor":
        """The same with some annotations set, or removed where the value is None."""
        merged: dict[str, str | None] = {**self.annotations, **changes}
        kept = {key: value for key, value in merged.items() if value is not None}
        return replace(self, annotations=kept)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = mediatype.OCI_MANIFEST
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Json] = field(default_factory=dict, hash=False)

    def encode(self) -> bytes:
        """The document, deterministically."""
        document: JsonObject = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        document["config"] = encode_descriptor(self.config)
        document["layers"] = [encode_descriptor(layer) for layer in self.layers]
        return encode_json(_with_tail(document, self))


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests under one name, usually one per platform."""

    manifests: tuple[Descriptor, ...]
    media_type: str = mediatype.OCI_INDEX
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Json] = field(default_factory=dict, hash=False)

    def encode(self) -> bytes:
        """The document, deterministically."""
        document: JsonObject = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        document["manifests"] = [encode_descriptor(entry) for entry in self.manifests]
        return encode_json(_with_tail(document, self))


def _with_tail(document: JsonObject, value: Manifest | Index) -> JsonObject:
    if value.subject is not None:
        document["subject"] = encode_descriptor(value.subject)
    if value.annotations:
        document["annotations"] = sorted_map(value.annotations)
    return document | {key: value.extra[key] for key in sorted(value.extra)}


def decode_descriptor(value: Json, what: str) -> Descriptor:
    """Read a descriptor; ``what`` names the document in messages.

    Raises:
        ContentError: a field is missing or of the wrong kind.
    """
    rest = dict(as_object(value, f"{what}: descriptor"))
    platform = rest.pop("platform", None)
    return Descriptor(
        media_type=take_string(rest, "mediaType", what),
        digest=Digest.parse(take_string(rest, "digest", what)),
        size_bytes=take_size(rest, "size", what),
        urls=take_strings(rest, "urls", what, URLS_LIMIT),
        annotations=take_string_map(rest, "annotations", what),
        artifact_type=take_string(rest, "artifactType", what),
        platform=None
        if platform is None
        else decode_platform(as_object(platform, f"{what}: platform"), what),
        extra=rest,
    )


def encode_descriptor(descriptor: Descriptor) -> JsonObject:
    """The JSON form of a descriptor."""
    document: JsonObject = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
    }
    if descriptor.urls:
        document["urls"] = list(descriptor.urls)
    if descriptor.annotations:
        document["annotations"] = sorted_map(descriptor.annotations)
    if descriptor.artifact_type:
        document["artifactType"] = descriptor.artifact_type
    if descriptor.platform is not None:
        document["platform"] = encode_platform(descriptor.platform)
    return document | {key: descriptor.extra[key] for key in sorted(descriptor.extra)}


def describe(raw: bytes, media_type: str) -> Descriptor:
    """The descriptor of content at hand."""
    return Descriptor(media_type, Digest.of(raw), len(raw))


def verify_content(raw: bytes, descriptor: Descriptor, where: str) -> None:
    """Check content against its descriptor; ``where`` names its origin in messages.

    Raises:
        ContentError: another size or digest.
    """
    verify(raw, descriptor.digest, descriptor.size_bytes, f"{where}: {descriptor.digest}")


def _open(raw: bytes, media_type: str, own: str, foreign: tuple[str, ...]) -> JsonObject:
    """The document, if it is of the kind that ``media_type`` says and of no other.

    A document that reads as a manifest to one client and as an index to another is refused
    (image-spec, "Media type conflicts"; CVE-2021-41190).
    """
    document = parse_object(raw, own, MANIFEST_LIMIT_BYTES)
    if document.pop("schemaVersion", None) != 2:
        raise ContentError(f"{own}: schema version is not 2 (an image of 2017 or older?)")
    named = take_string(document, "mediaType", own)
    if named not in ("", media_type):
        raise ContentError(f"{own}: calls itself {named[:80]!r}, but was given as {media_type!r}")
    for key in foreign:
        if key in document:
            raise ContentError(f"{own}: has {key!r}, which belongs to another kind of document")
    return document


def decode_manifest(raw: bytes, media_type: str) -> Manifest:
    """Read an image manifest (already checked against its digest).

    Raises:
        ContentError: not a manifest, or beyond a limit.
    """
    what = "manifest"
    if media_type not in mediatype.MANIFESTS:
        raise ContentError(f"{what}: {media_type[:80]!r} is not an image manifest")
    rest = _open(raw, media_type, what, ("manifests", "fsLayers"))
    config = decode_descriptor(rest.pop("config", None), f"{what}: config")
    layers = take_list(rest, "layers", what, LAYERS_LIMIT)
    subject = rest.pop("subject", None)
    return Manifest(
        media_type=media_type,
        config=config,
        layers=tuple(decode_descriptor(layer, f"{what}: layer") for layer in layers),
        artifact_type=take_string(rest, "artifactType", what),
        subject=None if subject is None else decode_descriptor(subject, f"{what}: subject"),
        annotations=take_string_map(rest, "annotations", what),
        extra=rest,
    )


def decode_index(raw: bytes, media_type: str) -> Index:
    """Read an image index (already checked against its digest).

    Raises:
        ContentError: not an index, or beyond a limit.
    """
    what = "index"
    if media_type not in mediatype.INDEXES:
        raise ContentError(f"{what}: {media_type[:80]!r} is not an image index")
    rest = _open(raw, media_type, what, ("config", "layers", "fsLayers"))
    manifests = take_list(rest, "manifests", what, INDEX_ENTRIES_LIMIT)
    subject = rest.pop("subject", None)
    return Index(
        media_type=media_type,
        manifests=tuple(decode_descriptor(entry, f"{what}: entry") for entry in manifests),
        artifact_type=take_string(rest, "artifactType", what),
        subject=None if subject is None else decode_descriptor(subject, f"{what}: subject"),
        annotations=take_string_map(rest, "annotations", what),
        extra=rest,
    )


def decode(raw: bytes, media_type: str) -> Manifest | Index:
    """Read whichever of the two ``media_type`` names.

    Raises:
        ContentError: neither, or broken.
    """
    if media_type in mediatype.INDEXES:
        return decode_index(raw, media_type)
    return decode_manifest(raw, media_type)


def media_type_of(raw: bytes) -> str:
    """The media type that a manifest or index gives itself; empty when it does not.

    Raises:
        ContentError: not a JSON object.
    """
    return take_string(parse_object(raw, "manifest", MANIFEST_LIMIT_BYTES), "mediaType", "manifest")


def choose_platform(index: Index, wanted: Platform) -> Descriptor:
    """The entry that fits ``wanted`` best; the first of equals.

    An entry that does not say its platform is taken when it is the only such entry and none
    that says it fits.

    Raises:
        NotFoundError: nothing fits; the message lists what there is.
    """
    images = [entry for entry in index.manifests if entry.is_manifest or entry.is_index]
    fits = [
        (fit, position)
        for position, entry in enumerate(images)
        if entry.platform is not None and (fit := rank(wanted, entry.platform)) is not None
    ]
    if fits:
        return images[min(fits)[1]]
    unnamed = [entry for entry in images if entry.platform is None and not entry.artifact_type]
    if len(unnamed) == 1:
        return unnamed[0]
    offered = sorted({str(entry.platform) for entry in images if entry.platform is not None})
    raise NotFoundError(
        f"no image for {wanted} (there is: {', '.join(offered[:20]) or 'none with a platform'})",
        status=404,
        code="MANIFEST_UNKNOWN",
    )
