"""Tables and the plot of what the matrix found. Pure, but for ``main``, which reads the file."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.matrix.contenders import PROFILED
from benchmarks.matrix.images import NAMES
from benchmarks.matrix.plan import BARE, FULL_PULLS, OURS, Cell, bound_s
from benchmarks.matrix.plot import Panel, drawing
from benchmarks.matrix.results import Results, Sample, good
from benchmarks.matrix.workloads import WORKLOADS
from benchmarks.report import MEBI, TIMES, Grid, Spread, markdown

ROUND_TRIPS = 7
"""Of the bound: one for the connection, five for the mount, one for the data."""
REFERENCE = ("fuse+profile", "fuse")
"""Whose time is put over that of those who are not ours: the first that took part."""
PLOTTED = ("numpy", "import")

Samples = Sequence[Sample]


def line_of(sample: Sample) -> str:
    """A sample for people who wait."""
    what = f"{sample.cell} {sample.round + 1} {sample.image}/{sample.workload} {sample.contender}"
    if sample.error:
        return f"{what}: FAILED: {sample.error.splitlines()[-1]}"
    amount = f"{sample.fetched_bytes / MEBI:.1f} MiB in {sample.requests} requests"
    return f"{what}: {sample.start_s:.2f} + {sample.work_s:.2f} s, {amount}"


def present(samples: Samples) -> list[str]:
    """The contenders that have figures, ours first."""
    found = dict.fromkeys(sample.contender for sample in samples)
    known = [name for name in (*OURS, *BARE, *FULL_PULLS) if name in found]
    return known + sorted(found.keys() - set(known))


def cells(samples: Samples) -> list[Cell]:
    """The lines, the slowest first."""
    return sorted({Cell.parse(sample.cell) for sample in samples}, key=lambda c: (c.mbit, c.rtt_ms))


def works(samples: Samples) -> list[tuple[str, str]]:
    """Images and workloads, in their own order."""
    found = {(sample.image, sample.workload) for sample in samples}
    known = [(image, work.name) for image in NAMES for work in WORKLOADS[image]]
    return [what for what in known if what in found]


def pick(samples: Samples, work: tuple[str, str], cell: Cell, contender: str) -> Samples:
    """Those of one figure, over the rounds."""
    return [
        sample
        for sample in samples
        if (sample.image, sample.workload) == work
        and sample.cell == str(cell)
        and sample.contender == contender
    ]


def ratio(ours: Samples, theirs: Samples) -> float | None:
    """Our time over theirs: the median over rounds that have both, below 1 we are faster."""
    times = {sample.round: sample.total_s for sample in theirs}
    ratios = [s.total_s / times[s.round] for s in ours if s.round in times]
    return median(ratios) if ratios else None


def _figure(samples: Samples, ours: Samples) -> str:
    if not samples:
        return "-"
    spread = Spread.of([sample.total_s for sample in samples])
    words = f"{spread.median:.3g} s"
    if len(samples) > 1:
        words += f" ({spread.least:.3g}-{spread.most:.3g})"
    over = ratio(ours, samples) if ours else None
    return words if over is None else f"{words} {TIMES}{over:.2g}"


def _reference(samples: Samples) -> str:
    names = present(samples)
    return next((name for name in (*REFERENCE, *names) if name in names), "")


def times(samples: Samples) -> Grid:
    """From nothing to the end of each workload, by line and contender."""
    names, reference = present(samples), _reference(samples)
    rows = []
    for work in works(samples):
        for cell in cells(samples):
            ours = pick(samples, work, cell, reference)
            row = ["/".join(work), str(cell)]
            for name in names:
                theirs = pick(samples, work, cell, name)
                row.append(_figure(theirs, () if name in (*OURS, *BARE) else ours))
            if any(figure != "-" for figure in row[2:]):
                rows.append(row)
    title = f"From nothing to the end of the workload; {TIMES}: {reference}'s time over that"
    return Grid(title, ["image/workload", "line", *names], rows)


def amounts(samples: Samples) -> Grid:
    """Bytes and requests, medians over lines and rounds."""
    names = present(samples)
    rows = []
    for work in works(samples):
        row = ["/".join(work)]
        for name in names:
            found = [s for s in samples if (s.image, s.workload) == work and s.contender == name]
            if not found:
                row.append("-")
                continue
            fetched = median(sample.fetched_bytes for sample in found) / MEBI
            requests = median(sample.requests for sample in found)
            row.append(f"{fetched:.1f} MiB, {requests:.0f}")
        rows.append(row)
    return Grid("Fetched, HTTP requests", ["image/workload", *names], rows)


def profiled_bytes(results: Results, image: str, contender: str) -> float:
    """What a contender's profile makes it fetch."""
    key = "hot_profiled_bytes" if PROFILED[contender] == "hot" else "profiled_bytes"
    return results.images[image][key]


def bounds(results: Results, samples: Samples) -> Grid:
    """Those that go by a profile, against round trips and profiled bytes."""
    names = [name for name in present(samples) if name in PROFILED]
    starts = {(image, w.name) for image, ws in WORKLOADS.items() for w in ws if w.is_start}
    rows = []
    for work in works(samples):
        for cell in cells(samples):
            if work not in starts:
                continue
            row = ["/".join(work), str(cell)]
            for name in names:
                bound = bound_s(cell, ROUND_TRIPS, profiled_bytes(results, work[0], name))
                found = pick(samples, work, cell, name)
                times = [sample.total_s / bound for sample in found]
                row.append(f"{bound:.3g} s, {TIMES}{median(times):.2f}" if times else "-")
            rows.append(row)
    title = (
        f"Bound: {ROUND_TRIPS} round trips and the profiled bytes over the line; "
        f"{TIMES}: measured time over it"
    )
    return Grid(title, ["image/workload", "line", *names], rows)


def sizes(results: Results) -> Grid:
    """Of the images."""
    keys = ("tar", "seekable", "profiled", "profile_blocks", "hot_profiled", "hot_profile_blocks")
    head = ["MiB", "tar", "seekable", "profiled frames", "profiled blocks, decoded"]
    head += ["hot-first: frames", "hot-first: blocks, decoded"]
    rows = []
    for name, image in results.images.items():
        found = [image.get(f"{key}_bytes") for key in keys]
        rows.append([name, *("-" if size is None else f"{size / MEBI:.1f}" for size in found)])
    return Grid("The images", head, rows)


def lines(results: Results) -> Grid:
    """Whether the lines did what they were asked for."""
    rows = []
    for name, found in results.lines.items():
        measured = (found["rtt_s"] * 1e3, found["bits_per_s"] / 1e6, found["set_up_s"] * 1e3)
        rows.append([name, *(f"{value:.3g}" for value in measured)])
    head = ["line", "round trip, ms", "Mbit/s", "first exchange, ms"]
    return Grid("The lines as they were found", head, rows)


def grids(results: Results) -> Iterable[Grid]:
    """All tables."""
    samples = good(results.samples)
    yield times(samples)
    if any(name in PROFILED for name in present(samples)):
        yield bounds(results, samples)
    yield amounts(samples)
    yield sizes(results)
    yield lines(results)


def text(results: Results) -> str:
    """Everything as Markdown."""
    machine, versions = results.machine, results.versions
    parts = [f"{machine['processors']} processors, Linux {machine['kernel']}, {machine['time']}"]
    parts.append("; ".join(f"{name} {version}" for name, version in versions.items()))
    parts += [f"`{command}`" for command in results.commands]
    for grid in grids(results):
        parts.append(f"{grid.title}:\n\n{markdown(grid)}")
    parts += [f"Left out: {name}: {why}" for name, why in results.left_out.items()]
    parts += [line_of(sample) for sample in results.samples if sample.error]
    return "\n\n".join(parts)


def plot(results: Results, work: tuple[str, str] = PLOTTED) -> str:
    """The plot as SVG: a grid of lines, in each a bar for each contender."""
    samples = [s for s in good(results.samples) if (s.image, s.workload) == work]
    names = present(samples)
    panels = {}
    for cell in cells(samples):
        bars = {}
        for name in names:
            if found := pick(samples, work, cell, name):
                bars[name] = median(sample.total_s for sample in found)
        panels[cell] = Panel(bars)
    return drawing(f"{work[0]}: from nothing to the end of “{work[1]}”, seconds", panels, OURS)


def main(words: Sequence[str] | None = None) -> int:
    """Make the tables and the plot of a file anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--plotted", default="/".join(PLOTTED), metavar="IMAGE/WORKLOAD")
    args = parser.parse_args(words)
    results = Results.read(args.file)
    print(text(results))
    if args.plot:
        image, _, workload = args.plotted.partition("/")
        args.plot.write_text(plot(results, (image, workload)))
    return 0
