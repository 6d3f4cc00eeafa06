"""One profile from several of the same image."""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from lazyfs.errors import ProfileError
from lazyfs.profile.document import (
    MAX_BLOCK_RUNS,
    MAX_FILE_RANGES,
    MAX_RUNS,
    BlockRun,
    FileRange,
    Profile,
)

_Place = TypeVar("_Place", bound=Hashable)

MAX_PIECES = 1 << 20
"""Into so many pieces may profiles be cut; what ranges that overlap in one another count is more
than what they are."""


def merge(profiles: Sequence[Profile]) -> Profile:
    """What all starts read comes first, then what most read, and so on; each in order of first use.

    The order of first use is that of the profile which read it earliest, after the fewest bytes.
    What would pass a limit of the document, the least used and last, is left out.

    Args:
        profiles: at least one.

    Raises:
        ProfileError: they are of different images, or too many.
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
    runs = sum(profile.runs for profile in profiles)
    if runs > MAX_RUNS:
        raise ProfileError(f"profiles of {runs} recordings; {MAX_RUNS} can be counted")
    blocks = _merged(
        [
            (profile.runs, [_Span(run.layer, run.first, run.end) for run in profile.blocks])
            for profile in profiles
        ]
    )
    files = _merged(
        [
            (
                profile.runs,
                [
                    _Span((file.layer, file.path), file.offset, file.offset + file.length)
                    for file in profile.files
                ],
            )
            for profile in profiles
        ]
    )
    return Profile(
        image=first.image,
        layers=first.layers,
        runs=runs,
        blocks=tuple(
            BlockRun(span.place, span.start, span.end - span.start)
            for span in blocks[:MAX_BLOCK_RUNS]
        ),
        files=tuple(
            FileRange(*span.place, span.start, span.end - span.start)
            for span in files[:MAX_FILE_RANGES]
        ),
    )


class _Span(NamedTuple, Generic[_Place]):
    """Part of a layer or file."""

    place: _Place
    start: int
    end: int


class _Use(NamedTuple):
    """How a piece sorts: by fewest first."""

    runs: int
    """Less than none: of how many recordings it is."""
    before: int
    """What was read before it, in the profile that read it earliest."""


def _merged(recorded: Sequence[tuple[int, Sequence[_Span[_Place]]]]) -> list[_Span[_Place]]:
    """Spans that do not overlap, in the order of ``merge``.

    Args:
        recorded: number of recordings and spans in order of first use, of each profile.

    Raises:
        ProfileError: there would be too many pieces.
    """
    cuts = _cuts(span for _, spans in recorded for span in spans)
    uses: dict[_Span[_Place], _Use] = {}
    pieces = 0
    for runs, spans in recorded:
        ours: set[_Span[_Place]] = set()
        before = 0
        for span in spans:
            edges = cuts[span.place]
            start = span.start
            index = bisect_right(edges, start)
            while start < span.end:
                piece = _Span(span.place, start, edges[index])
                pieces += 1
                if pieces > MAX_PIECES:
                    raise ProfileError(f"the profiles name more than {MAX_PIECES} pieces")
                if piece not in ours:
                    ours.add(piece)
                    known = uses.get(piece, _Use(0, before))
                    uses[piece] = _Use(known.runs - runs, min(known.before, before))
                before += piece.end - start
                start = edges[index]
                index += 1
    return _joined(sorted(uses, key=uses.__getitem__))


def _cuts(spans: Iterable[_Span[_Place]]) -> dict[_Place, list[int]]:
    """Where any span begins or ends, in order: no piece between two of these is used in part."""
    found: dict[_Place, set[int]] = {}
    for span in spans:
        found.setdefault(span.place, set()).update((span.start, span.end))
    return {place: sorted(edges) for place, edges in found.items()}


def _joined(spans: Iterable[_Span[_Place]]) -> list[_Span[_Place]]:
    """Neighbours that follow each other as one."""
    joined: list[_Span[_Place]] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is not None and (last.place, last.end) == (span.place, span.start):
            joined[-1] = last._replace(end=span.end)
        else:
            joined.append(span)
    return joined
