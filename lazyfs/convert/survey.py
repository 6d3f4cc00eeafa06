"""Looks at all documents of a source before any work is done, and refuses what cannot be done."""

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.convert.documents import (
    CONFIG_LIMIT_BYTES,
    ImageConfig,
    decode_config,
    is_image,
    is_seekable,
    reference_of,
)
from lazyfs.errors import ConversionError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor, Index, Manifest, choose_platform, decode, decode_manifest
from registry.platforms import Platform, rank

MAX_ENTRIES = 256
"""Entries of an index that are converted or carried along."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image to convert."""

    entry: Descriptor
    manifest: Manifest
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class CarriedManifest:
    """Something in an index that is no image, such as an attestation: copied as it is."""

    entry: Descriptor
    raw: bytes
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Survey:
    """All that is to be done."""

    index: Index | None
    """The source's index; None: the result is a single image."""
    entries: tuple[SourceImage | CarriedManifest, ...]
    notes: tuple[str, ...]
    """What is left out, and why."""

    @property
    def images(self) -> list[SourceImage]:
        """The images to convert."""
        return [entry for entry in self.entries if isinstance(entry, SourceImage)]


async def survey_source(source: ImageSource, platforms: Sequence[Platform]) -> Survey:
    """Fetch manifests and configurations.

    Args:
        source: what to convert.
        platforms: of an index, take these only. A single one gives a single image.

    Raises:
        ConversionError: no image, or one that cannot be converted.
        PlanError: an EROFS layer with malformed annotations.
        RegistryError: the source cannot be read, or does not have the platform.
    """
    top = await source.resolve()
    raw = await source.fetch_manifest(top)
    document = decode(raw, top.media_type)
    if isinstance(document, Manifest):
        if not is_image(document, top):
            raise ConversionError(f"{source.name} is no container image")
        image = await _look_at(source, top, document)
        _check_single(image.config.platform, platforms)
        return Survey(None, (image,), ())
    entries, notes = await _look_at_entries(source, document, platforms)
    survey = Survey(None if len(platforms) == 1 else document, tuple(entries), tuple(notes))
    if not survey.images:
        raise ConversionError(f"{source.name} has no Linux image in its index")
    return survey


async def _look_at_entries(
    source: ImageSource, index: Index, platforms: Sequence[Platform]
) -> tuple[list[SourceImage | CarriedManifest], list[str]]:
    chosen = _choose(index, platforms)
    if len(chosen) > MAX_ENTRIES:
        raise ConversionError(f"index has {len(chosen)} entries, at most {MAX_ENTRIES} are taken")
    entries: list[SourceImage | CarriedManifest] = []
    notes: list[str] = []
    for entry in chosen:
        if not entry.is_manifest:
            raise ConversionError(f"index entry {entry.digest} is a {entry.media_type!r}")
        if entry.platform is not None and not _can_run_erofs(entry.platform):
            notes.append(f"left out: {entry.platform} (only Linux has EROFS)")
            continue
        raw = await source.fetch_manifest(entry)
        manifest = decode_manifest(raw, entry.media_type)
        if is_image(manifest, entry):
            entries.append(await _look_at(source, entry, manifest))
        else:
            entries.append(CarriedManifest(entry, raw, manifest))
    return entries, notes


def _choose(index: Index, platforms: Sequence[Platform]) -> list[Descriptor]:
    """The entries to take: all, or those of some platforms and what speaks of them."""
    if not platforms:
        return list(index.manifests)
    wanted = {choose_platform(index, platform).digest for platform in platforms}
    attested = wanted if len(platforms) > 1 else set()
    return [
        entry
        for entry in index.manifests
        if entry.digest in wanted or reference_of(entry) in attested
    ]


def _can_run_erofs(platform: Platform) -> bool:
    return platform.os in ("linux", "unknown", "")


def _check_single(offered: Platform, wanted: Sequence[Platform]) -> None:
    if not _can_run_erofs(offered):
        raise ConversionError(f"the image is for {offered}; only Linux has EROFS")
    for platform in wanted:
        if rank(platform, offered) is None:
            raise ConversionError(f"the image is for {offered}, not for {platform}")


async def _look_at(source: ImageSource, entry: Descriptor, manifest: Manifest) -> SourceImage:
    raw = await source.fetch_content(manifest.config, CONFIG_LIMIT_BYTES)
    config = decode_config(raw, len(manifest.layers))
    for layer in manifest.layers:
        is_seekable(layer)  # refuses what cannot be converted
    return SourceImage(entry, manifest, config)
