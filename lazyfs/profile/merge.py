"""One profile from several of the same image."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from lazyfs.errors import ProfileError
from lazyfs.profile.document import (
    MAX_BLOCK_RUNS,
    MAX_FILE_RANGES,
    BlockRun,
    FileRange,
    Profile,
)

_Unit = TypeVar("_Unit", bound=Hashable)

MAX_BLOCKS = 1 << 23
"""Blocks that merged profiles may name together: 32 GiB."""


def merge(profiles: Sequence[Profile]) -> Profile:
    """What all starts read comes first, then what most read, and so on; each in order of first use.

    The order of first use is that of the profile which read it earliest, by rank.

    Args:
        profiles: at least one.

    Raises:
        ProfileError: they are of different images, or name too much.
    """
    first = profiles[0]
    for other in profiles[1:]:
        if (other.image, other.layers) != (first.image, first.layers):
            raise ProfileError(
                f"profiles of different images cannot be merged: {first.image} and {other.image}; "
                "record them from one image, named by its digest"
            )
    if len(profiles) == 1:
        return first
    return Profile(
        image=first.image,
        layers=first.layers,
        runs=sum(profile.runs for profile in profiles),
        blocks=_merged_blocks(profiles),
        files=_merged_files(profiles),
    )


def _merged_blocks(profiles: Sequence[Profile]) -> tuple[BlockRun, ...]:
    if sum(run.length for profile in profiles for run in profile.blocks) > MAX_BLOCKS:
        raise ProfileError(f"the profiles name more than {MAX_BLOCKS} blocks")
    ordered = _by_use(
        (
            profile.runs,
            ((run.layer, block) for run in profile.blocks for block in range(run.first, run.end)),
        )
        for profile in profiles
    )
    runs: list[BlockRun] = []
    for layer, block in ordered:
        if runs and runs[-1].layer == layer and runs[-1].end == block:
            runs[-1] = runs[-1]._replace(length=runs[-1].length + 1)
        else:
            runs.append(BlockRun(layer, block, 1))
    return tuple(runs[:MAX_BLOCK_RUNS])


def _merged_files(profiles: Sequence[Profile]) -> tuple[FileRange, ...]:
    """Ranges may overlap here: who lays out files by them takes what is new of each."""
    ordered = _by_use((profile.runs, profile.files) for profile in profiles)
    return tuple(ordered[:MAX_FILE_RANGES])


def _by_use(recorded: Iterable[tuple[int, Iterable[_Unit]]]) -> list[_Unit]:
    """Units, those of more recordings first, then by the earliest rank in any of them."""
    uses: Counter[_Unit] = Counter()
    earliest: dict[_Unit, int] = {}
    for runs, units in recorded:
        for rank, unit in enumerate(dict.fromkeys(units)):
            uses[unit] += runs
            earliest[unit] = min(rank, earliest.get(unit, rank))
    return sorted(uses, key=lambda unit: (-uses[unit], earliest[unit]))
