"""What a startup profile says to the layers that are converted, and they to a new one. Pure.

A profile was recorded on an image, and names its files by layer. An image of as many layers is
taken for another form of the same one; in any other, a path is looked for in every layer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lazyfs.erofs.build.front import HotRange
from lazyfs.erofs.build.order import BlockSpan
from lazyfs.profile.document import MAX_BLOCK_RUNS, BlockRun, FileRange, Profile


@dataclass(frozen=True, slots=True)
class HotFiles:
    """What is to be in front in one layer."""

    digest: str
    """Of the ranges."""
    ranges: tuple[HotRange, ...] = field(compare=False, repr=False)
    """In order of first use."""


class FrontLayout(NamedTuple):
    """What of a layer's image the hot files have become; in blocks of 4096 bytes."""

    metadata: tuple[BlockSpan, ...]
    data: BlockSpan
    missing: frozenset[bytes]
    """Paths that the layer does not have."""


def _goes_by_layer(profile: Profile, layers: int) -> bool:
    return len(profile.layers) == layers


def hot_files(profile: Profile, layers: int) -> list[HotFiles | None]:
    """What each of an image's ``layers`` layers, bottom first, is to have in front, if anything."""
    ranges: list[list[HotRange]] = [[] for _ in range(layers)]
    for layer, path, offset, length in profile.files:
        here = [ranges[layer]] if _goes_by_layer(profile, layers) else ranges
        for each in here:
            each.append(HotRange(path, offset, length))
    return [_hashed(each) if each else None for each in ranges]


def _hashed(ranges: Sequence[HotRange]) -> HotFiles:
    digest = hashlib.sha256()
    for path, offset, length in ranges:
        digest.update(b"%s\0%d %d\0" % (path, offset, length))
    return HotFiles(digest.hexdigest(), tuple(ranges))


def missing_paths(profile: Profile, fronts: Sequence[FrontLayout | None]) -> int:
    """How many paths of a profile no layer of a converted image has in front."""
    missing = [front.missing for front in fronts if front is not None]
    if _goes_by_layer(profile, len(fronts)):
        return sum(map(len, missing))
    return len(frozenset.intersection(*missing)) if missing else 0


def profile_of(
    profile: Profile, image: str, layers: Sequence[str], fronts: Sequence[FrontLayout | None]
) -> Profile:
    """The profile of a converted image, from that which it was converted by.

    Args:
        profile: that the conversion went by.
        image: digest of the manifest.
        layers: digests of the layers' blobs, bottom first.
        fronts: what each of them has in front.
    """
    there = [(number, front) for number, front in enumerate(fronts) if front is not None]
    spans = [(number, span) for number, front in there for span in front.metadata]
    spans += [(number, front.data) for number, front in there if front.data.length]
    blocks = [BlockRun(number, span.first, span.length) for number, span in spans]
    files = [
        file._replace(layer=layer)
        for file in profile.files
        for layer in _layers_of(file, there, by_layer=_goes_by_layer(profile, len(layers)))
    ]
    return Profile(image, tuple(layers), profile.runs, tuple(blocks[:MAX_BLOCK_RUNS]), tuple(files))


def _layers_of(
    file: FileRange, fronts: Sequence[tuple[int, FrontLayout]], *, by_layer: bool
) -> list[int]:
    """The topmost layer that has a file, if one has."""
    found = [
        number
        for number, front in reversed(fronts)
        if file.path not in front.missing and (not by_layer or number == file.layer)
    ]
    return found[:1]
