"""An image as ``docker save`` writes it, shown as an OCI image.

``manifest.json`` names a configuration and layer files. From them a manifest is made: the same
archive gives the same manifest. Layer digests are computed when the image is resolved, and checked
against the configuration's diff IDs; the layers themselves are then read where they lie.
"""

import hashlib
from dataclasses import dataclass

import trio

from registry.archive import ArchiveMembers
from registry.digest import Digest
from registry.errors import ContentError, InvalidReferenceError, NotFoundError
from registry.files import PIECE_BYTES, FileRange, check_limit, read_content, read_member
from registry.health import HostStatus
from registry.jsondoc import (
    JsonObject,
    as_object,
    parse_json,
    parse_object,
    take_string,
    take_strings,
)
from registry.manifest import LAYERS_LIMIT, MANIFEST_LIMIT_BYTES, Descriptor, Manifest, describe
from registry.mediatype import (
    OCI_CONFIG,
    OCI_LAYER_TAR,
    OCI_LAYER_TAR_GZIP,
    OCI_LAYER_TAR_ZSTD,
    OCI_MANIFEST,
)
from registry.reference import LocalName, parse_reference

MANIFEST_FILE = "manifest.json"
IMAGES_LIMIT = 4096
TAGS_LIMIT = 4096
CONFIG_LIMIT_BYTES = 8 << 20

_LAYER_MAGIC = (
    (b"\x1f\x8b", OCI_LAYER_TAR_GZIP),
    (b"\x28\xb5\x2f\xfd", OCI_LAYER_TAR_ZSTD),
)


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An entry of ``manifest.json``: names of members."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


def decode_saved_images(raw: bytes) -> list[SavedImage]:
    """Read ``manifest.json``.

    Raises:
        ContentError: not such a file.
    """
    entries = parse_json(raw, MANIFEST_FILE, MANIFEST_LIMIT_BYTES)
    if not isinstance(entries, list) or not 0 < len(entries) <= IMAGES_LIMIT:
        raise ContentError(f"{MANIFEST_FILE}: not a list of 1 to {IMAGES_LIMIT} images")
    images: list[SavedImage] = []
    for entry in entries:
        document: JsonObject = dict(as_object(entry, MANIFEST_FILE))
        images.append(
            SavedImage(
                config=take_string(document, "Config", MANIFEST_FILE),
                layers=take_strings(document, "Layers", MANIFEST_FILE, LAYERS_LIMIT),
                tags=take_strings(document, "RepoTags", MANIFEST_FILE, TAGS_LIMIT),
            )
        )
    return images


def decode_diff_ids(config: bytes) -> tuple[str, ...]:
    """The diff IDs of a configuration (image-spec, config.md).

    Raises:
        ContentError: not a configuration.
    """
    document = parse_object(config, "image configuration", CONFIG_LIMIT_BYTES)
    rootfs = dict(as_object(document.get("rootfs"), "image configuration: rootfs"))
    return take_strings(rootfs, "diff_ids", "image configuration", LAYERS_LIMIT)


def choose_saved_image(images: list[SavedImage], name: LocalName) -> SavedImage:
    """The image that ``REPOSITORY:TAG``, ``REPOSITORY`` or a tag alone means.

    Raises:
        NotFoundError: none.
        ContentError: several.
    """
    if name.tag is None:
        found = images
    else:
        found = [image for image in images if _same_name(name.tag, image.tags)]
        found = found or [
            image for image in images if name.tag in [tag.rpartition(":")[2] for tag in image.tags]
        ]
    there = ", ".join(tag for image in images for tag in image.tags)[:400] or "none"
    if not found:
        raise NotFoundError(f"{name}: no such image (tags: {there})", status=404)
    if len(found) > 1:
        raise ContentError(f"{name}: holds {len(found)} such images; name one (tags: {there})")
    return found[0]


def _same_name(wanted: str, tags: tuple[str, ...]) -> bool:
    if wanted in tags:
        return True
    try:
        reference = parse_reference(wanted)
        return any(parse_reference(tag) == reference for tag in tags)
    except InvalidReferenceError:
        return False


class DockerArchiveSource:
    """One image of a Docker archive (an ``ImageSource``)."""

    def __init__(self, name: LocalName, members: ArchiveMembers) -> None:
        self._name = name
        self._members = members
        self._manifest = b""
        self._config = b""
        self._layers: dict[Digest, FileRange] = {}

    @property
    def name(self) -> str:
        """As ``ImageSource.name``."""
        return str(self._name)

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``; reads every layer once to know its digest."""
        if not self._manifest:
            await self._load()
        return describe(self._manifest, OCI_MANIFEST)

    async def _load(self) -> None:
        try:
            raw = await read_member(self._members, MANIFEST_FILE, MANIFEST_LIMIT_BYTES)
        except NotFoundError as error:
            raise NotFoundError(f"{error}: not written by docker save?", status=404) from error
        image = choose_saved_image(decode_saved_images(raw), self._name)
        config = await read_member(self._members, image.config, CONFIG_LIMIT_BYTES)
        diff_ids = decode_diff_ids(config)
        if len(diff_ids) != len(image.layers):
            raise ContentError(
                f"{self._name}: {len(image.layers)} layers, but {len(diff_ids)} diff IDs"
            )
        layers: list[Descriptor] = []
        for member, diff_id in zip(image.layers, diff_ids, strict=True):
            reader = await self._members.open(member)
            layer = await trio.to_thread.run_sync(_describe_layer, reader)
            if layer.media_type == OCI_LAYER_TAR and str(layer.digest) != diff_id:
                raise ContentError(
                    f"{self._name}: layer {member[:120]!r}: wanted {diff_id[:100]}, "
                    f"found {layer.digest}"
                )
            self._layers[layer.digest] = reader
            layers.append(layer)
        self._config = config
        self._manifest = Manifest(describe(config, OCI_CONFIG), tuple(layers)).encode()

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        await self.resolve()
        if descriptor.digest != Digest.of(self._manifest):
            raise NotFoundError(f"{self._name}: holds no {descriptor.digest}", status=404)
        return self._manifest

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        await self.resolve()
        if descriptor.digest == Digest.of(self._config):
            check_limit(descriptor, limit_bytes, self.name)
            return self._config
        return await read_content(await self.open_blob(descriptor), descriptor, limit_bytes)

    async def open_blob(self, descriptor: Descriptor) -> FileRange:
        """As ``ImageSource.open_blob``."""
        await self.resolve()
        reader = self._layers.get(descriptor.digest)
        if reader is None or reader.size_bytes != descriptor.size_bytes:
            raise NotFoundError(f"{self._name}: holds no {descriptor.digest}", status=404)
        return reader

    def hosts(self) -> tuple[HostStatus, ...]:
        """As ``ImageSource.hosts``: none."""
        return ()


def _describe_layer(reader: FileRange) -> Descriptor:
    """Digest, size and kind of a layer file; runs in a worker thread that trio can cancel."""
    running = hashlib.sha256()
    media_type = OCI_LAYER_TAR
    for position in range(0, reader.size_bytes, PIECE_BYTES):
        trio.from_thread.check_cancelled()
        piece = reader.read(position, min(PIECE_BYTES, reader.size_bytes - position))
        if not position:
            media_type = next(
                (m for magic, m in _LAYER_MAGIC if piece.startswith(magic)), media_type
            )
        running.update(piece)
    return Descriptor(media_type, Digest("sha256", running.hexdigest()), reader.size_bytes)
