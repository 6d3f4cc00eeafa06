"""From the name of an image to the manifest for one platform, proven link by link.

The tag is resolved to a digest, the digest proves the index, the index names the manifest by
digest, and so on: what ``open_blob`` gives is all that remains to be proven.
"""

import json
from dataclasses import dataclass, replace

from lazyfs.errors import PlanError, SourceUnavailableError
from registry.digest import Digest
from registry.errors import RegistryError
from registry.interfaces import ImageSource
from registry.jsondoc import as_object, parse_object
from registry.manifest import Descriptor, Index, Manifest, choose_platform, decode
from registry.platforms import Platform, host_platform, parse_platform

EROFS_FEATURE = "erofs"
"""What ``os.features`` of a platform says of an image with EROFS layers."""

CONFIG_LIMIT_BYTES = 8 << 20

MAX_INDEX_DEPTH = 4
"""Indexes inside indexes that are followed."""


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A manifest and how it was found."""

    name: str
    descriptor: Descriptor
    """Of the manifest."""
    manifest: Manifest
    indexes: tuple[Descriptor, ...]
    """The indexes on the way to it, outermost first."""
    platform: str
    """The platform that was chosen; empty where no index asked for a choice."""


def pin_of(resolved: ResolvedImage) -> str:
    """What names the manifest of ``resolved`` for ever, for ``resolve_pinned``."""
    descriptor = resolved.descriptor
    return json.dumps(
        {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size_bytes,
            "platform": resolved.platform,
        }
    )


def wanted_platform(text: str | None) -> Platform:
    """The platform to choose: ``text`` or this machine's, with EROFS layers preferred.

    Raises:
        RegistryError: ``text`` is not a platform.
    """
    platform = host_platform() if text is None else parse_platform(text)
    return replace(platform, os_features=(EROFS_FEATURE,))


async def resolve_image(source: ImageSource, platform: str | None) -> ResolvedImage:
    """Resolve the name of ``source`` to one manifest.

    Raises:
        SourceUnavailableError: the registry cannot be asked, or has no such image or platform.
        PlanError: the index leads to no manifest.
    """
    try:
        return await _resolve(source, wanted_platform(platform))
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error


async def resolve_pinned(source: ImageSource, pin: str) -> ResolvedImage:
    """The image that ``pin_of`` named, whatever the name of ``source`` means by now.

    Raises:
        SourceUnavailableError: the registry cannot be asked, or has that manifest no more.
        PlanError: what is named is no manifest.
    """
    values = json.loads(pin)
    digest = Digest.parse(values["digest"])
    descriptor = Descriptor(values["mediaType"], digest, values["size"])
    try:
        document = decode(await source.fetch_manifest(descriptor), descriptor.media_type)
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error
    if isinstance(document, Index):
        raise PlanError(f"{source.name}: {digest} is an index, not a manifest")
    return ResolvedImage(source.name, descriptor, document, (), values["platform"])


async def fetch_diff_ids(source: ImageSource, manifest: Manifest) -> tuple[Digest, ...]:
    """The diff ID of each layer of a manifest, as its configuration has them.

    Raises:
        SourceUnavailableError: the configuration cannot be had, or is none.
        PlanError: it does not fit the manifest.
    """
    try:
        raw = await source.fetch_content(manifest.config, CONFIG_LIMIT_BYTES)
        document = parse_object(raw, "configuration", CONFIG_LIMIT_BYTES)
        rootfs = as_object(document.get("rootfs", {}), "configuration: rootfs")
        listed = rootfs.get("diff_ids", [])
        found = listed if isinstance(listed, list) else []
        if len(found) != len(manifest.layers):
            raise PlanError(
                f"{source.name}: the configuration names {len(found)} diff IDs, "
                f"the manifest has {len(manifest.layers)} layers"
            )
        return tuple(Digest.parse(str(diff_id)) for diff_id in found)
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error


async def _resolve(source: ImageSource, wanted: Platform) -> ResolvedImage:
    descriptor = await source.resolve()
    indexes: list[Descriptor] = []
    while True:
        document = decode(await source.fetch_manifest(descriptor), descriptor.media_type)
        if not isinstance(document, Index):
            chosen = str(descriptor.platform) if descriptor.platform else ""
            return ResolvedImage(source.name, descriptor, document, tuple(indexes), chosen)
        indexes.append(descriptor)
        if len(indexes) > MAX_INDEX_DEPTH:
            raise PlanError(f"{source.name}: more than {MAX_INDEX_DEPTH} indexes inside each other")
        descriptor = choose_platform(document, wanted)
