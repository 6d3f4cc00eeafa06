"""Measure lazyfs beside its peers.

Needs root: it mounts, and empties the page cache of the machine. Figures are medians over
several rounds (least and greatest in brackets). The multiple is our time over that
contender's in the same round: above 1 we are slower.

Examples:
  python -m benchmarks                             some minutes
  python -m benchmarks --full --json results.json
  python -m benchmarks --only find --only lazyfs --only kernel-erofs
"""

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks import contenders, images, report, workloads
from benchmarks.contenders import Contender
from benchmarks.measure import Sample, Suite, turns
from benchmarks.system import INTERRUPTS, BenchmarkError, interrupts_deferred, tidy
from benchmarks.workloads import Workload

MEBI = 1 << 20
SUITES = ("image", *images.LAYOUTS)

_Named = TypeVar("_Named", Contender, Workload)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    random_reads: int
    large_file_bytes: int


QUICK = Extent(rounds=3, random_reads=1000, large_file_bytes=64 * MEBI)
FULL = Extent(rounds=9, random_reads=4000, large_file_bytes=256 * MEBI)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="few rounds (default)")
    extent.add_argument("--full", action="store_true", help="more rounds, larger files")
    parser.add_argument("--rounds", type=int, metavar="N", help="another number of rounds")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="only this suite, contender or workload; may be repeated; names of one kind do "
        f"not restrict the others (suites: {', '.join(SUITES)})",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples as JSON")
    return parser.parse_args()


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for everything; at the end no mount is left in it, nor it itself."""
    images.KEPT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=images.KEPT))
    try:
        yield folder
    finally:
        with interrupts_deferred():
            tidy(folder)


@contextlib.contextmanager
def suite_of(name: str, folder: Path, extent: Extent) -> Iterator[Suite]:
    """Prepare a suite by its name.

    Raises:
        BenchmarkError: something for it is missing.
    """
    if name == "image":
        with images.debian_image(folder) as image:
            found = contenders.for_image(image, folder)
            title = f"Debian with numpy, from a registry; the large file is /{image.large}"
            workload = workloads.on_a_tree(extent.random_reads)
            yield Suite(name, title, found, workload, image.large)
    else:
        file = images.compressed_image(name, extent.large_file_bytes, folder)
        options = " ".join(images.LAYOUTS[name])
        title = f"One file of {extent.large_file_bytes // MEBI} MiB, mkfs.erofs {options}"
        found = contenders.for_file(file, folder)
        yield Suite(name, title, found, workloads.on_a_file(extent.random_reads), Path("file"))


class Benchmark:
    """One run."""

    def __init__(self, extent: Extent, only: Collection[str]) -> None:
        self.samples: list[Sample] = []
        self.suites: list[Suite] = []
        self._extent = extent
        self._only = only
        self._known = set(SUITES)
        self._console = Console(stderr=True)

    def run(self) -> None:
        """Measure everything that is wanted.

        Raises:
            BenchmarkError: something failed.
        """
        for name in [name for name in SUITES if name in self._only] or SUITES:
            self._run_suite(name)
        if unknown := set(self._only) - self._known:
            raise BenchmarkError(
                f"nothing is called {', '.join(unknown)}; there are {', '.join(self._known)}"
            )

    def _run_suite(self, name: str) -> None:
        with (
            self._console.status(f"{name}: preparing") as status,
            working_folder() as folder,
            contextlib.ExitStack() as stack,
        ):
            try:
                suite = stack.enter_context(suite_of(name, folder, self._extent))
            except images.NotAvailableError as error:
                self._console.print(f"{name}: not available: {error}")
                return
            suite = replace(
                suite,
                contenders=self._chosen(suite.contenders),
                workloads=self._chosen(suite.workloads),
            )
            self.suites.append(suite)
            for turn in turns(suite, self._extent.rounds):
                status.update(str(turn))
                self.samples.extend(turn.measure())

    def _chosen(self, things: Collection[_Named]) -> list[_Named]:
        """What ``--only`` leaves of the contenders, or of the workloads."""
        self._known.update(thing.name for thing in things)
        return [thing for thing in things if thing.name in self._only] or list(things)

    def report(self, *, as_markdown: bool) -> None:
        """Print the tables."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=report.PLAIN_WIDTH)
        for suite in self.suites:
            names = [contender.name for contender in suite.contenders]
            if as_markdown:
                print(f"\n### {suite.title}")
            else:
                console.rule(suite.title)
            for grid in report.grids(report.pick(self.samples, suite=suite.name), names):
                if as_markdown:
                    print(f"\n{grid.title}:\n\n{report.markdown(grid)}")
                else:
                    report.show(console, grid)


def main() -> int:
    """Run the command; return its exit status."""
    args = arguments()
    if os.geteuid() != 0:
        print("benchmarks: must be run by root", file=sys.stderr)
        return 2
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)
    extent = FULL if args.full else QUICK
    if args.rounds:
        extent = replace(extent, rounds=args.rounds)
    benchmark = Benchmark(extent, args.only)
    status = 0
    try:
        benchmark.run()
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; what was measured until then:", file=sys.stderr)
        status = 130
    benchmark.report(as_markdown=args.markdown)
    if args.json:
        args.json.write_text(report.as_json(benchmark.samples, machine()))
    return status


if __name__ == "__main__":
    sys.exit(main())
