"""Writes configurations, manifests and indexes, once the blobs that they name are there."""

from collections.abc import Mapping
from dataclasses import replace

from lazyfs.convert.documents import (
    converted_entry,
    converted_index,
    converted_manifest,
    reference_of,
    with_reference,
    with_roles,
)
from lazyfs.convert.hot import missing_paths, profile_of
from lazyfs.convert.layers import copy_blob, push_bytes
from lazyfs.convert.progress import Progress
from lazyfs.convert.results import ImageResult, LayerResult
from lazyfs.convert.sourcelayers import SourceLayer
from lazyfs.convert.survey import CarriedManifest, SourceEntry, SourceImage, SourceIndex
from lazyfs.profile.document import Profile
from lazyfs.seekable.mediatypes import Layout
from registry.digest import Digest
from registry.interfaces import ImageDestination, ImageSource
from registry.manifest import Descriptor, describe

Document = tuple[Descriptor, bytes]


class DocumentPusher:
    """Push all images first, then what speaks of them, then ``finish``."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        layout: Layout,
        layers: Mapping[SourceLayer, LayerResult],
        progress: Progress,
        profile: Profile | None = None,
    ) -> None:
        """Write into ``destination`` what ``layers`` have become, converted by ``profile``."""
        self._source = source
        self._destination = destination
        self._layout = layout
        self._layers = layers
        self._progress = progress
        self._profile = profile
        self._results: list[ImageResult] = []
        self._pushed: dict[Digest, Document] = {}
        """What became of each manifest of the source."""
        self._entries: dict[Descriptor, Descriptor] = {}
        self.notes: list[str] = []

    @property
    def images(self) -> tuple[ImageResult, ...]:
        """What was pushed, in order."""
        return tuple(self._results)

    async def push_image(self, image: SourceImage) -> None:
        """Push configuration and manifest of a converted image."""
        layers = tuple(self._layers[layer] for layer in image.layers)
        entries = [entry for layer in layers for entry in layer.layers()]
        descriptors = [descriptor for descriptor, _ in entries]
        if self._layout is Layout.EROFS_SPEC:
            descriptors = with_roles(descriptors)
        config = image.config.converted([diff_id for _, diff_id in entries])
        manifest = converted_manifest(image.manifest, config, descriptors)
        raw = manifest.encode()
        descriptor = describe(raw, manifest.media_type)
        await push_bytes(self._destination, manifest.config, config)
        await self._destination.push_manifest(raw, descriptor)
        platform = str(image.entry.platform or image.config.platform)
        result = ImageResult(platform, image.entry.digest, descriptor, layers)
        if self._profile is not None:
            result = _with_profile(result, self._profile)
        self._results.append(result)
        self._pushed[image.entry.digest] = descriptor, raw

    async def carry(self, carried: CarriedManifest) -> None:
        """Copy what is no image, if what it speaks of is there.

        An attestation's index entry, and the ``subject`` of a manifest, come to name the
        converted image. What is signed or stated inside still names the image before.
        """
        entry, manifest = carried.entry, carried.manifest
        reference = reference_of(entry)
        if reference is not None and reference not in self._pushed:
            self.notes.append(
                f"left out: {entry.digest}, which speaks of an image that is left out"
            )
            return
        blobs = (manifest.config, *manifest.layers)
        task = self._progress.begin(f"manifest {entry.digest.encoded[:12]}")
        task.stage("copying", sum(blob.size_bytes for blob in blobs))
        for blob in blobs:
            await copy_blob(self._source, self._destination, blob, task.advance)
        raw, new = carried.raw, entry
        if manifest.subject is not None and manifest.subject.digest in self._pushed:
            subject, _ = self._pushed[manifest.subject.digest]
            raw = replace(manifest, subject=subject).encode()
            new = replace(entry, digest=Digest.of(raw), size_bytes=len(raw))
        if reference is not None:
            new = with_reference(new, self._pushed[reference][0].digest)
        await self._destination.push_manifest(raw, new)
        task.finish()
        self._entries[entry] = new
        inside = "" if new == entry else ", which still describes the image before conversion"
        self.notes.append(f"carried along: {entry.digest}{inside}")

    async def finish(self, top: SourceImage | SourceIndex) -> Document:
        """Push the indexes inside each other; give the outermost document, not yet named."""
        if isinstance(top, SourceImage):
            return self._pushed[top.entry.digest]
        return await self._push_index(top, outermost=True)

    async def _push_index(self, source: SourceIndex, *, outermost: bool) -> Document:
        entries: list[Descriptor] = []
        for entry in source.entries:
            new = await self._new_entry(entry)
            entries += [new] if new is not None else []
        index = converted_index(source.index, entries)
        raw = index.encode()
        descriptor = describe(raw, index.media_type)
        if not outermost:
            await self._destination.push_manifest(raw, descriptor)
        return descriptor, raw

    async def _new_entry(self, entry: SourceEntry) -> Descriptor | None:
        if isinstance(entry, SourceImage):
            _, raw = self._pushed[entry.entry.digest]
            return converted_entry(entry.entry, raw, entry.config.platform)
        if isinstance(entry, CarriedManifest):
            return self._entries.get(entry.entry)
        descriptor, raw = await self._push_index(entry, outermost=False)
        return replace(
            entry.entry,
            media_type=descriptor.media_type,
            digest=descriptor.digest,
            size_bytes=len(raw),
        )


def _with_profile(result: ImageResult, profile: Profile) -> ImageResult:
    """Add what a start reads of the new image."""
    fronts = [layer.front for layer in result.layers]
    blobs = [str(layer.descriptor.digest) for layer in result.layers]
    new = profile_of(profile, str(result.descriptor.digest), blobs, fronts)
    return replace(result, profile=new, missing_paths=missing_paths(profile, fronts))
