"""Measure ``lazyfs convert`` beside the same work done by separate tools.

The work: one layer of Debian, gzip inside, becomes an EROFS image, its dm-verity tree, and all
of it compressed. The tools: gzip, tar into a folder, mkfs.erofs of that folder, veritysetup, zstd
with all processors. Both end with files on the same disk. Peak memory is that of the largest
process. The second table has layers of one file each, of two sizes.

Needs root: GNU tar sets owners.

Examples:
  python -m benchmarks.conversion
  python -m benchmarks.conversion --rounds 5 --markdown
"""

import gzip
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.report import MEBI, TIMES, Grid
from benchmarks.system import BenchmarkError, run
from benchmarks.tables import arguments, print_tables
from tests.support.images import TAG, LayerFile, debian_layer, digest_of, write_layout

SIZES_BYTES = (300 * MEBI, 3000 * MEBI)
"""Of the files whose conversions' memory is compared."""

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What some processes took."""

    seconds: float
    cpu_seconds: float
    """Of all processors together: what else the machine does matters less for it."""
    peak_bytes: int
    """Resident memory of the largest of them."""


@dataclass(frozen=True)
class Source:
    """A layer, alone in an image."""

    layout: Path
    layer: LayerFile
    plain_bytes: int
    """Of the layer's tar."""


def run_measured(*commands: list[str | Path], output: Path | None = None) -> Cost:
    """Run commands as a pipe to their end.

    Raises:
        BenchmarkError: one failed.
    """
    began = time.monotonic()
    processes: dict[int, str] = {}
    source = os.open(os.devnull, os.O_RDONLY)
    for number, command in enumerate(commands):
        words = [os.fspath(word) for word in command]
        last = number == len(commands) - 1
        following, target = (-1, -1) if last else os.pipe2(os.O_CLOEXEC)
        if last:
            target = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, target, 1)]
        processes[os.posix_spawnp(words[0], words, os.environ, file_actions=actions)] = words[0]
        os.close(source)
        os.close(target)
        source = following
    peak, cpu = 0, 0.0
    for pid, name in processes.items():
        _, status, usage = os.wait4(pid, 0)
        if status:
            raise BenchmarkError(f"{name} failed")
        peak = max(peak, usage.ru_maxrss * 1024)
        cpu += usage.ru_utime + usage.ru_stime
    return Cost(time.monotonic() - began, cpu, peak)


def by_lazyfs(source: Source, folder: Path, *options: str) -> dict[str, Cost]:
    """One command for all of it."""
    words = [f"oci:{source.layout}:{TAG}", f"oci:{folder}/out:x", "--quiet", "--no-cache"]
    command: list[str | Path] = [sys.executable, "-m", "lazyfs", "convert", *words, *options]
    return {"lazyfs convert": run_measured(command)}


def by_tools(source: Source, folder: Path) -> dict[str, Cost]:
    """One command for each step."""
    tree, image = folder / "tree", folder / "image.erofs"
    tree.mkdir()
    untar: list[str | Path] = ["tar", "-C", tree, "-xp", "--numeric-owner", "--xattrs"]
    compress: list[str | Path] = ["zstd", "-q", "-3", "-T0", image, "-o", folder / "image.zst"]
    make_tree: list[str | Path] = ["veritysetup", "format", "--hash=sha512", "--salt=-"]
    make_tree += [image, folder / "tree.verity"]
    return {
        "gzip -dc, tar -x": run_measured(["gzip", "-dc", source.layer.path], untar),
        "mkfs.erofs": run_measured(["mkfs.erofs", "--quiet", image, tree]),
        "veritysetup format": run_measured(make_tree),
        "zstd -3 -T0": run_measured(compress),
    }


def debian_source(folder: Path) -> Source:
    """Debian with numpy, as one gzip layer."""
    layer = debian_layer()
    with gzip.open(layer.path) as file:
        plain_bytes = sum(len(piece) for piece in iter(lambda: file.read(PIECE_BYTES), b""))
    write_layout(folder / "in", [layer])
    return Source(folder / "in", layer, plain_bytes)


def one_file_source(folder: Path, size_bytes: int) -> Source:
    """One file: the beginning of Debian's tar, again and again."""
    (folder / "tree").mkdir(parents=True)
    left = size_bytes
    with (folder / "tree/file").open("wb") as target:
        while left:
            with gzip.open(debian_layer().path) as file:
                while left and (piece := file.read(min(left, PIECE_BYTES))):
                    left -= target.write(piece)
    tar = folder / "layer.tar"
    run("tar", "-C", folder / "tree", "-cf", tar, ".")
    shutil.rmtree(folder / "tree")
    digest = digest_of(tar)
    kind = "application/vnd.oci.image.layer.v1.tar"
    layer = LayerFile(tar, digest, tar.stat().st_size, digest, kind)
    write_layout(folder / "in", [layer])
    return Source(folder / "in", layer, layer.size)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, on disk and not in memory; gone at the end."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def compare(source: Source, folder: Path, rounds: int) -> Grid:
    """Time and memory of both, in turn."""
    works: dict[str, Callable[[Path], dict[str, Cost]]] = {
        "lazyfs convert": lambda place: by_lazyfs(source, place),
        "lazyfs convert --layout erofs-spec": lambda place: by_lazyfs(
            source, place, "--layout", "erofs-spec"
        ),
        "lazyfs convert --jobs 1": lambda place: by_lazyfs(source, place, "--jobs", "1"),
        "separate tools": lambda place: by_tools(source, place),
    }
    taken: dict[str, list[Cost]] = {name: [] for name in works}
    steps: dict[str, list[Cost]] = {}
    for number in range(rounds):
        order = [*works][number % len(works) :] + [*works][: number % len(works)]
        for name in order:
            with scratch(folder) as place:
                costs = works[name](place)
            taken[name].append(_sum(costs.values()))
            if name == "separate tools":
                for step, cost in costs.items():
                    steps.setdefault(step, []).append(cost)
    tools = taken["separate tools"]
    rows = [_row(name, costs, source.plain_bytes, tools) for name, costs in taken.items()]
    rows += [_row(f"  of these {name}", costs, source.plain_bytes) for name, costs in steps.items()]
    title = f"A layer of Debian, {source.plain_bytes / MEBI:.0f} MiB of tar; {rounds} rounds"
    head = ["", "time", "MB/s of tar", "over tools'", "CPU time", "over tools'", "peak memory"]
    return Grid(title, head, rows)


def _sum(costs: Iterable[Cost]) -> Cost:
    """Of things done one after the other."""
    each = [*costs]
    return Cost(
        sum(cost.seconds for cost in each),
        sum(cost.cpu_seconds for cost in each),
        max(cost.peak_bytes for cost in each),
    )


def _row(
    name: str, costs: list[Cost], plain_bytes: int, tools: list[Cost] | None = None
) -> list[str]:
    seconds = median(cost.seconds for cost in costs)
    cpu = median(cost.cpu_seconds for cost in costs)
    ratio = cpu_ratio = ""
    if tools is not None:
        pairs = [*zip(costs, tools, strict=True)]
        ratio = _spread([ours.seconds / theirs.seconds for ours, theirs in pairs])
        cpu_ratio = _spread([ours.cpu_seconds / theirs.cpu_seconds for ours, theirs in pairs])
    peak = max(cost.peak_bytes for cost in costs) / MEBI
    speed = f"{plain_bytes / 1e6 / seconds:.0f}"
    cells = [f"{seconds:.1f} s", speed, ratio, f"{cpu:.1f} s", cpu_ratio, f"{peak:.0f} MiB"]
    return [name, *cells]


def _spread(ratios: list[float]) -> str:
    return f"{TIMES}{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def memory(folder: Path) -> Grid:
    """Peak memory for a layer, and for one ten times as large."""
    rows = []
    for layout in ("containerd", "erofs-spec"):
        peaks = []
        for size_bytes in SIZES_BYTES:
            with scratch(folder) as place:
                source = one_file_source(place, size_bytes)
                costs = by_lazyfs(source, place, "--layout", layout)
            peaks.append(costs["lazyfs convert"].peak_bytes)
        cells = [f"{peak / MEBI:.0f} MiB" for peak in peaks]
        rows.append([f"--layout {layout}", *cells, f"{TIMES}{peaks[1] / peaks[0]:.2f}"])
    head = ["", *(f"{size / MEBI:.0f} MiB" for size in SIZES_BYTES), "multiple"]
    return Grid("Peak memory of lazyfs convert, by the size of a layer of one file", head, rows)


def main() -> int:
    """Run the command; return its exit status."""
    args = arguments("benchmarks.conversion", __doc__).parse_args()
    return print_tables(
        args, lambda folder: [compare(debian_source(folder), folder, args.rounds), memory(folder)]
    )


if __name__ == "__main__":
    sys.exit(main())
