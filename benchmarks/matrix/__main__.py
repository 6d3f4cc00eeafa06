"""Measure cold starts over lines of several kinds, beside full pulls and peers.

Needs root: it mounts, and empties the page cache of the machine. Results go to a JSON file after
each step; an interrupted run goes on with --resume. Tables and the plot are made of that file,
by this command at its end and by "python -m benchmarks.report FILE.json".

Examples:
  python -m benchmarks.matrix --image numpy --cell 5ms/100Mbit --cell 50ms/100Mbit
  python -m benchmarks.matrix --rounds 3 --json build/matrix.json
  python -m benchmarks.matrix --estimate
"""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.__main__ import machine, working_folder
from benchmarks.images import KEPT
from benchmarks.matrix import images, plan, report
from benchmarks.matrix.peers import Peer, read_peers
from benchmarks.matrix.plan import (
    BARE,
    CELLS,
    FULL_PULLS,
    OURS,
    SHORT_CELLS,
    SLOW_ROUNDS,
    Cell,
    Item,
    estimate_s,
)
from benchmarks.matrix.profiles import make_profiles
from benchmarks.matrix.results import Results
from benchmarks.matrix.runner import measure
from benchmarks.matrix.workloads import Workload, of_image
from benchmarks.shaped import calibrated, described, shaped_line
from benchmarks.shaper import LOOPBACK
from benchmarks.system import INTERRUPTS, BenchmarkError, run
from tests.support.registry_server import RegistryServer, running_registry

VERSIONS = {
    "skopeo": ("skopeo", "--version"),
    "umoci": ("umoci", "--version"),
    "zstd": ("zstd", "--version"),
    "docker-registry": ("docker-registry", "--version"),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (*OURS, *BARE, *FULL_PULLS, *read_peers())
    parser.add_argument("--short", action="store_true", help="one image, two cells, one round")
    parser.add_argument("--image", choices=images.NAMES, action="append")
    parser.add_argument("--cell", type=Cell.parse, metavar="5ms/100Mbit", action="append")
    parser.add_argument("--contender", choices=names, action="append")
    parser.add_argument("--starts-only", action="store_true", help="no find, no grep")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--slow-rounds",
        type=int,
        default=SLOW_ROUNDS,
        metavar="N",
        help="at most, over lines of 10 Mbit/s, whose time it is; default: %(default)s",
    )
    parser.add_argument("--json", type=Path, default=KEPT / "matrix.json", metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="keep what FILE has")
    parser.add_argument("--anew", action="store_true", help="convert and record again")
    parser.add_argument("--estimate", action="store_true", help="only tell how long it takes")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    args = parser.parse_args()
    if args.short:
        args.image, args.cell = args.image or ["numpy"], args.cell or list(SHORT_CELLS)
        args.rounds = 1
    args.image, args.cell = args.image or list(images.NAMES), args.cell or list(CELLS)
    return args


@dataclass
class Matrix:
    """One run."""

    args: argparse.Namespace
    results: Results
    peers: dict[str, Peer]
    folder: Path
    registry: RegistryServer

    def prepare(self) -> None:
        """Make images and profiles, unless they are there."""
        for name in self.args.image:
            _say(f"{name}: preparing")
            if self.args.anew:
                for note in self.registry.storage.glob(f"matrix-{name}*.json"):
                    note.unlink()
            where = (self.registry.host, self.registry.storage)
            image = images.matrix_image(name, *where)
            sizes = {"tar_bytes": image.tar_bytes, "seekable_bytes": image.seekable_bytes}
            profiled = make_profiles(image, *where, self.folder)
            self.results.images[name] = {**sizes, **profiled}

    def wanted(self) -> list[Item]:
        """What is to be measured still."""
        names = self.args.contender or [*OURS, *FULL_PULLS, *self.peers]
        names = [name for name in names if name not in self.results.left_out]
        rounds = (self.args.rounds, self.args.slow_rounds)
        items = plan.items(self.args.cell, self.args.image, names, *rounds)
        done = self.results.done()
        return [item for item in items if item not in done]

    def estimate(self, items: list[Item]) -> float:
        """About how long some items take, in seconds."""
        sizes = self.results.images
        return sum(
            estimate_s(item, int(sizes[item.image]["seekable_bytes"]), len(self.workloads(item)))
            for item in items
        )

    def workloads(self, item: Item) -> Sequence[Workload]:
        """What is done in an item."""
        return of_image(item.image, starts_only=self.args.starts_only)

    def run(self) -> None:
        """Measure, cell by cell; what is done is written after each item."""
        left = self.wanted()
        _say(f"about {self.estimate(left) / 60:.0f} min for {len(left)} starts of contenders")
        by_cell = defaultdict(list)
        for item in left:
            by_cell[item.cell].append(item)
        with socket.create_server((LOOPBACK, 0)) as reserved:
            port = reserved.getsockname()[1]
        began, estimated, passed = time.monotonic(), self.estimate(left), 0.0
        for cell, items in by_cell.items():
            found = calibrated(cell.line)
            _say(f"{cell}: {described(cell.line, found)}")
            self.results.lines[str(cell)] = asdict(found)
            with shaped_line(cell.line, self.registry.host, port) as line:
                for item in items:
                    image = images.matrix_image(
                        item.image, self.registry.host, self.registry.storage
                    )
                    what = (image, line, self.registry.host, self.peers, self.folder)
                    samples = list(measure(item, self.workloads(item), *what))
                    self.results.samples.extend(samples)
                    self.results.write(self.args.json)
                    passed += self.estimate([item])
                    spent = time.monotonic() - began
                    eta = spent / passed * (estimated - passed) / 60
                    for sample in samples:
                        _say(f"{report.line_of(sample)}; {eta:.0f} min left")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _versions() -> dict[str, str]:
    """Of lazyfs and of what it is compared with."""
    root = Path(__file__).parents[2]
    words = ("git", "-C", root, "describe", "--always", "--dirty")
    found = {"lazyfs": run(*words, check=False).strip()}
    for name, command in VERSIONS.items():
        found[name] = (run(*command, check=False).splitlines() or ["?"])[0]
    return found


def _results(args: argparse.Namespace) -> Results:
    results = Results.read(args.json) if args.resume and args.json.exists() else Results()
    results.machine, results.versions = machine(), _versions()
    results.commands.append(shlex.join(["python", "-m", "benchmarks.matrix", *sys.argv[1:]]))
    for name, peer in read_peers().items():
        if missing := peer.missing():
            results.left_out[name] = f"{peer.about}: not installed: {', '.join(missing)}"
    return results


def main() -> int:
    """Run the command; return its exit status."""
    args = arguments()
    if os.geteuid() != 0:
        print("benchmarks: must be run by root", file=sys.stderr)
        return 2
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile its modules
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    status = 0
    results = _results(args)
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(working_folder())
            registry = stack.enter_context(running_registry(KEPT))
            peers = {n: p for n, p in read_peers().items() if n not in results.left_out}
            matrix = Matrix(args, results, peers, folder, registry)
            matrix.prepare()
            if args.estimate:
                left = matrix.wanted()
                _say(f"about {matrix.estimate(left) / 60:.0f} min for {len(left)} items")
                return 0
            matrix.run()
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; --resume goes on with it", file=sys.stderr)
        status = 130
    if results.samples:
        results.write(args.json)
        print(report.text(results))
        if args.plot:
            args.plot.write_text(report.plot(results))
    return status


if __name__ == "__main__":
    sys.exit(main())
