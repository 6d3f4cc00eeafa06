"""Tables of what was measured: for the terminal, as Markdown, as JSON."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.measure import START, Sample

Samples = Sequence[Sample]
TITLES = {
    "cold": "Cold: nothing of the image is on this machine",
    "disk": "Disk: all of it is on the local disk, nothing in memory",
    "warm": "Warm: the second time in the same mount",
}
MEBI = 1 << 20
TIMES = "\N{MULTIPLICATION SIGN}"
PLAIN_WIDTH = 140
"""Columns where the output is not a terminal."""

COMPACT = {
    "start": "start (mount; pull and unpack)",
    "start+import": "start, then `import numpy`",
    "import": "`import numpy`",
    "find": "`find`",
    "find-ls": "`find -ls`",
    "sequential": "one file in sequence",
    "random-4k": "4 KiB at random",
}
"""Rows of the short table."""


class Spread(NamedTuple):
    """The middle, the least and the greatest of some figures."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """The spread of at least one figure."""
        return cls(median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Grid:
    """A table, whatever it is printed as."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def pick(samples: Samples, **wanted: str) -> Samples:
    """Those with the given values."""
    return [
        sample
        for sample in samples
        if all(getattr(sample, name) == value for name, value in wanted.items())
    ]


def by_round(samples: Samples) -> dict[int, float]:
    """Seconds for one of what was counted, by round; the middle one if a round has several."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, []).append(sample.seconds / sample.count)
    return {number: median(seconds) for number, seconds in rounds.items()}


def ratio(ours: Samples, theirs: Samples) -> Spread | None:
    """Our time over theirs, of the same round; above 1 we are slower."""
    one, other = by_round(ours), by_round(theirs)
    figures = [one[number] / other[number] for number in one.keys() & other.keys()]
    return Spread.of(figures) if figures else None


def figure(samples: Samples, *, spread: bool = True) -> str:
    """Samples of one thing, in its unit, such as ``0.21 s (0.19-0.40)``."""
    unit = samples[0].unit
    rounds = by_round(samples)
    spans = Spread.of(list(rounds.values()))
    if unit == "MB/s":
        shown = [f"{1e-6 / seconds:.0f}" for seconds in (spans.median, spans.most, spans.least)]
    elif unit == "us":
        shown, unit = [f"{seconds * 1e6:.3g}" for seconds in spans], "µs"
    else:
        shown = [f"{seconds * samples[0].count:.3g}" for seconds in spans]
    middle, least, most = shown
    return f"{middle} {unit}" + (f" ({least}-{most})" if spread and len(rounds) > 1 else "")


def against(ours: Samples, theirs: Samples, *, spread: bool = True) -> str:
    """Our time over theirs, such as ``x1.4 (1.1-1.7)``; empty if there is none."""
    ratios = ratio(ours, theirs)
    if ratios is None:
        return ""
    around = f" ({ratios.least:.2g}-{ratios.most:.2g})"
    several = spread and len(by_round(theirs)) > 1
    return f"{TIMES}{ratios.median:.2g}{around if several else ''}"


def times(samples: Samples, contenders: Sequence[str]) -> Iterable[Grid]:
    """A table for each state: workloads down, contenders across, the others against the first."""
    for state, title in TITLES.items():
        here = pick(samples, state=state)
        across = [name for name in contenders if pick(here, contender=name)]
        workloads = dict.fromkeys(sample.workload for sample in here)
        rows = []
        for workload in sorted(workloads, key=lambda name: not name.startswith(START)):
            row = [workload]
            done = pick(here, workload=workload)
            ours = pick(done, contender=contenders[0])
            for name in across:
                theirs = pick(done, contender=name)
                compared = against(ours, theirs) if name != contenders[0] else ""
                row.append("\n".join(filter(None, [figure(theirs), compared])) if theirs else "")
            rows.append(row)
        if rows:
            yield Grid(title, ["", *across], rows)


def costs(samples: Samples) -> Grid | None:
    """Bytes, requests and memory after each workload."""
    head = ["contender", "workload", "from", "fetched MiB", "read MiB", "fetched/read"]
    head += ["HTTP requests", "FUSE requests", "RSS MiB", "PSS MiB", "peak MiB"]
    served = [sample for sample in samples if "rss_bytes" in sample.facts]
    keys = dict.fromkeys((sample.contender, sample.state, sample.workload) for sample in served)
    rows = []
    for contender, state, workload in keys:
        done = pick(served, contender=contender, state=state, workload=workload)
        facts = {name: median(sample.facts[name] for sample in done) for name in done[0].facts}
        fetched, read = facts.get("fetched_bytes", 0), facts.get("read_bytes", 0)
        counts = [facts.get(name) for name in ("requests", "fuse_requests")]
        memory = [facts[name] for name in ("rss_bytes", "pss_bytes", "peak_rss_bytes")]
        amounts = (
            [f"{fetched / MEBI:.1f}", f"{read / MEBI:.1f}"] if counts[0] is not None else ["", ""]
        )
        over = f"{fetched / read:.2f}" if fetched and read else ""
        cells = [*amounts, over, *("" if count is None else f"{count:.0f}" for count in counts)]
        rows.append([contender, workload, state, *cells, *(f"{b / MEBI:.1f}" for b in memory)])
    return Grid("Since the start: bytes, requests, memory", head, rows) if rows else None


def compact(samples: Samples) -> Grid | None:
    """The suite ``image`` in a few lines: against the kernel from disk, unpacking from cold.

    The kernel's cells have our time from the disk over its; those of pull and unpack our time
    from cold over its for what includes the start, and from the disk for the rest.
    """
    samples = pick(samples, suite="image")
    rows = []
    for name, title in COMPACT.items():
        done = pick(samples, workload=name)
        cold = pick(done, contender="lazyfs", state="cold")
        disk = pick(done, contender="lazyfs", state="disk")
        kernel = pick(done, contender="kernel-erofs", state="disk")
        state = "cold" if name.startswith(START) else "disk"
        ours, full = (cold if state == "cold" else disk), pick(done, contender="pull-unpack")
        cells = [_short(cold), _short(disk), _short(kernel, disk)]
        rows.append([title, *cells, _short(pick(full, state=state), ours)])
    head = ["", "lazyfs, cold", "lazyfs, from its cache", "kernel EROFS", "pull and unpack"]
    return Grid("In short", head, rows) if samples else None


def _short(theirs: Samples, ours: Samples = ()) -> str:
    if not theirs:
        return "-"
    compared = against(ours, theirs, spread=False)
    return figure(theirs, spread=False) + (f" ({compared})" if compared else "")


def grids(samples: Samples, contenders: Sequence[str]) -> Iterable[Grid]:
    """All tables of a suite."""
    yield from times(samples, contenders)
    short = compact(samples)
    for grid in (costs(samples), short):
        if grid:
            yield grid


def show(console: Console, grid: Grid) -> None:
    """Print a table on a terminal."""
    table = Table(title=grid.title, title_justify="left")
    for index, name in enumerate(grid.head):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in grid.rows:
        table.add_row(*row, end_section=any("\n" in cell for cell in row))
    console.print(table)


def markdown(grid: Grid) -> str:
    """A table as Markdown."""
    rows = [grid.head, ["---", *["--:"] * (len(grid.head) - 1)], *grid.rows]
    lines = (" | ".join(cell.replace("\n", ", ") for cell in row) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def as_json(samples: Samples, machine: Mapping[str, object]) -> str:
    """Everything, for other programs."""
    document = {"machine": machine, "samples": [asdict(sample) for sample in samples]}
    return json.dumps(document, indent=1)


if __name__ == "__main__":
    from benchmarks.matrix.report import main  # which has its tables from here

    sys.exit(main())
