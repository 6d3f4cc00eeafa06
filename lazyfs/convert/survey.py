"""Looks at all documents of a source before any work is done, and refuses what cannot be done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lazyfs.convert.documents import (
    CONFIG_LIMIT_BYTES,
    ImageConfig,
    decode_config,
    is_image,
    reference_of,
)
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.sourcelayers import (
    FOREIGN_LAYERS,
    SourceLayer,
    source_layers,
    with_hot_files,
)
from lazyfs.errors import ConversionError
from registry.interfaces import ImageSource
from registry.manifest import Descriptor, Index, Manifest, choose_platform, decode, decode_manifest
from registry.platforms import Platform, rank

MAX_ENTRIES = 256
"""Entries of all indexes together that are converted or carried along."""

MAX_INDEX_DEPTH = 4
"""Indexes inside indexes that are followed."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image to convert."""

    entry: Descriptor
    manifest: Manifest
    config: ImageConfig
    layers: tuple[SourceLayer, ...]


@dataclass(frozen=True, slots=True)
class CarriedManifest:
    """Something in an index that is no image, such as an attestation: copied as it is."""

    entry: Descriptor
    raw: bytes
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class SourceIndex:
    """An index, and what of it is taken."""

    entry: Descriptor
    index: Index
    entries: tuple["SourceEntry", ...]


SourceEntry: TypeAlias = SourceImage | CarriedManifest | SourceIndex


@dataclass(frozen=True, slots=True)
class Survey:
    """All that is to be done."""

    top: SourceImage | SourceIndex
    notes: tuple[str, ...]
    """What is left out, and why."""

    @property
    def images(self) -> list[SourceImage]:
        """The images to convert, in the order of their indexes."""
        return [entry for entry in _walk(self.top) if isinstance(entry, SourceImage)]

    @property
    def carried(self) -> list[CarriedManifest]:
        """What is copied."""
        return [entry for entry in _walk(self.top) if isinstance(entry, CarriedManifest)]


def _walk(entry: SourceEntry) -> Iterator[SourceEntry]:
    yield entry
    if isinstance(entry, SourceIndex):
        for inner in entry.entries:
            yield from _walk(inner)


async def survey_source(source: ImageSource, options: ConvertOptions) -> Survey:
    """Fetch manifests and configurations.

    Raises:
        ConversionError: no image, or one that cannot be converted.
        PlanError: an EROFS layer with malformed annotations.
        RegistryError: the source cannot be read, or does not have the platform.
    """
    return await _Surveyor(source, options).survey()


class _Surveyor:
    """Walks one source; each platform that was asked for is taken where it fits best."""

    def __init__(self, source: ImageSource, options: ConvertOptions) -> None:
        self._source = source
        self._options = options
        self._notes: list[str] = []
        self._seen = 0

    async def survey(self) -> Survey:
        platforms = self._options.platforms
        top = await self._source.resolve()
        document = decode(await self._source.fetch_manifest(top), top.media_type)
        if isinstance(document, Manifest):
            if not is_image(document, top):
                raise ConversionError(f"{self._source.name} is no container image")
            image = await self._look_at(top, document)
            _check_single(image.config.platform, platforms)
            return Survey(image, tuple(self._notes))
        index = await self._look_into(top, document, 1)
        survey = Survey(index, tuple(self._notes))
        if not survey.images:
            raise ConversionError(f"{self._source.name} has no Linux image in its index")
        if len(platforms) == 1:
            return Survey(survey.images[0], survey.notes)
        return survey

    async def _look_into(self, entry: Descriptor, index: Index, depth: int) -> SourceIndex:
        if depth > MAX_INDEX_DEPTH:
            raise ConversionError(f"more than {MAX_INDEX_DEPTH} indexes inside each other")
        chosen = _choose(index, self._options.platforms)
        self._seen += len(chosen)
        if self._seen > MAX_ENTRIES:
            raise ConversionError(
                f"index has {self._seen} entries, at most {MAX_ENTRIES} are taken"
            )
        entries: list[SourceEntry] = []
        for inner in chosen:
            found = await self._look_at_entry(inner, depth)
            if found is not None:
                entries.append(found)
        return SourceIndex(entry, index, tuple(entries))

    async def _look_at_entry(self, entry: Descriptor, depth: int) -> SourceEntry | None:
        if entry.platform is not None and not _can_run_erofs(entry.platform):
            self._notes.append(f"left out: {entry.platform} (only Linux has EROFS)")
            return None
        if entry.is_index:
            document = decode(await self._source.fetch_manifest(entry), entry.media_type)
            if isinstance(document, Index):
                return await self._look_into(entry, document, depth + 1)
        if not entry.is_manifest:
            self._notes.append(f"left out: {entry.digest}, a {entry.media_type[:80]}")
            return None
        raw = await self._source.fetch_manifest(entry)
        manifest = decode_manifest(raw, entry.media_type)
        if is_image(manifest, entry):
            return await self._look_at(entry, manifest)
        return CarriedManifest(entry, raw, manifest)

    async def _look_at(self, entry: Descriptor, manifest: Manifest) -> SourceImage:
        raw = await self._source.fetch_content(manifest.config, CONFIG_LIMIT_BYTES)
        config = decode_config(raw, len(manifest.layers))
        layers = source_layers(manifest.layers, config.diff_ids, self._options.layout)
        if self._options.profile is not None:
            layers = with_hot_files(layers, self._options.profile)
        self._notes += [
            f"layer {layer.digest} was not to be pushed elsewhere ({layer.media_type})"
            for layer in manifest.layers
            if layer.media_type in FOREIGN_LAYERS
        ]
        return SourceImage(entry, manifest, config, layers)


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
