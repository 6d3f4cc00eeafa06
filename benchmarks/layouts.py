"""Compare orders of file data and chunk sizes: what do they cost, and what does a start fetch?

Converts one image in every combination, and in each starts Python and loads numpy on a cold
mount behind a slow line. Orders:

  tar      as the layers' tars have it, which is by path
  hot      the files that this very start reads in front, by a profile (``--profile``)
  types    programs and libraries first, then Python's files, then the rest
  small    small files first

All but the first are made by a profile: the last two by one that names every file.

Examples:
  python -m benchmarks.layouts
  python -m benchmarks.layouts --image oci:images:debian --sizes 256KiB --sizes 1MiB --markdown
"""

import contextlib
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import MEBI, Grid
from benchmarks.shaped import shaped_line
from benchmarks.shaper import Line
from benchmarks.system import drop_caches, run, tidy
from benchmarks.tables import arguments, print_tables
from lazyfs.cli.values import size
from lazyfs.profile.document import FileRange, Profile, decode_profile, encode_profile
from lazyfs.seekable.ondisk import HASHED_ENTRY, TABLE_HEADER
from tests.support.images import TAG, debian_layer, write_layout
from tests.support.registry_server import running_registry

SIZES = ("64KiB", "128KiB", "256KiB", "512KiB", "1MiB", "4MiB")
WORKLOAD = ("python3", "-c", "import numpy")
ELF_MAGIC = b"\x7fELF"
PYTHON = (".py", ".pyc", ".pth")

File = tuple[Path, os.stat_result]


@dataclass(frozen=True)
class Converted:
    """One image and what was said when it was made."""

    name: str
    """In the registry, without its host."""
    seconds: float
    blob_bytes: int
    image_bytes: int
    chunks: int

    @property
    def table_bytes(self) -> int:
        """Of the chunk tables."""
        return TABLE_HEADER.size_bytes + self.chunks * HASHED_ENTRY.size_bytes


@dataclass(frozen=True)
class Start:
    """One start on a cold mount."""

    mount_s: float
    workload_s: float
    fetched_bytes: int
    decoded_bytes: int
    """Of the chunks that were fetched."""
    read_bytes: int
    """By readers, the kernel's read-ahead included."""
    requests: int


def lazyfs(*words: str | Path) -> str:
    """Run a command of lazyfs, which must succeed; what it prints."""
    return run(sys.executable, "-m", "lazyfs", *words)


def convert(source: str, host: str, name: str, *options: str | Path) -> Converted:
    """Convert an image into a registry, whatever is known of it."""
    began = time.monotonic()
    said = lazyfs("convert", "--json", "--quiet", "--no-cache", source, f"{host}/{name}", *options)
    seconds = time.monotonic() - began
    layers = json.loads(said)["images"][0]["layers"]
    sums = [sum(layer[key] for layer in layers) for key in ("size", "imageSize", "chunks")]
    return Converted(name, seconds, *sums)


@contextlib.contextmanager
def mounted(image: str, folder: Path) -> Iterator[Path]:
    """A mount with an empty cache."""
    place = Path(tempfile.mkdtemp(dir=folder))
    root = place / "root"
    root.mkdir()
    lazyfs("mount", "--prefetch", "none", "--cache-dir", place / "cache", image, root)
    try:
        yield root
    finally:
        tidy(place)


def start(image: str, folder: Path) -> Start:
    """Mount with an empty cache, and run the workload."""
    drop_caches()
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        root = stack.enter_context(mounted(image, folder))
        at_once = time.monotonic()
        run("chroot", root, *WORKLOAD)
        done = time.monotonic()
        [status] = json.loads(lazyfs("status", "--json", root))
    totals: dict[str, Any] = status["totals"]
    return Start(
        at_once - began,
        done - at_once,
        totals["fetched_bytes"],
        sum(layer["cached_bytes"] for layer in status["layers"]),
        totals["read_bytes"],
        totals["requests"],
    )


def regular_files(root: Path) -> list[File]:
    """All regular files of a tree that hold something, in the order of their paths."""
    found: list[File] = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size:
                found.append((path, status))
    return found


def by_type(file: File) -> int:
    """Programs and libraries before Python's files before the rest."""
    path, _ = file
    with path.open("rb") as opened:
        if opened.read(len(ELF_MAGIC)) == ELF_MAGIC:
            return 0
    return 1 if path.suffix in PYTHON else 2


def by_size(file: File) -> int:
    """Small files first."""
    return file[1].st_size


def profiles(image: str, folder: Path) -> dict[str, Path | None]:
    """The profile that makes each order; None: the order of the tar."""
    made: dict[str, Path | None] = {"tar": None, "hot": folder / "hot.profile"}
    with mounted(image, folder) as root:
        run("chroot", root, *WORKLOAD)
        lazyfs("profile", "record", root, "-o", folder / "hot.profile")
        recorded = decode_profile((folder / "hot.profile").read_bytes())
        files = regular_files(root)
        orders: dict[str, Callable[[File], int]] = {"types": by_type, "small": by_size}
        for name, key in orders.items():
            path = made[name] = folder / f"{name}.profile"
            path.write_bytes(encode_profile(naming_all(recorded, root, sorted(files, key=key))))
    return made


def naming_all(recorded: Profile, root: Path, files: Iterable[File]) -> Profile:
    """A profile that puts whole files into an order, in whichever layer they are."""
    ranges = [
        FileRange(0, os.fsencode(path.relative_to(root)), 0, status.st_size)
        for path, status in files
    ]
    # A layer more than there is: paths are looked for in all of them.
    layers = (*recorded.layers, recorded.layers[0])
    return Profile(recorded.image, layers, 1, (), tuple(ranges))


def compare(source: str, sizes: Iterable[str], line: Line, rounds: int, folder: Path) -> Grid:
    """Every order in every chunk size."""
    with (
        running_registry(folder / "registry") as registry,
        shaped_line(line, registry.host) as shaped,
    ):
        first = convert(source, registry.host, "layouts:first", "--chunk-size", "4MiB")
        orders = profiles(f"{registry.host}/{first.name}", folder)
        made: dict[tuple[str, str], Converted] = {}
        for chunk in sizes:
            for order, profile in orders.items():
                options: list[str | Path] = ["--chunk-size", chunk]
                options += ["--profile", profile] if profile is not None else []
                name = f"layouts:{order}-{chunk.lower()}"
                made[chunk, order] = convert(source, registry.host, name, *options)
        starts: dict[tuple[str, str], list[Start]] = {key: [] for key in made}
        for _ in range(rounds):
            for key, converted in made.items():
                starts[key].append(start(f"{shaped.host}/{converted.name}", folder))
    rows = [_row(*key, made[key], starts[key]) for key in made]
    title = (
        f"import numpy, cold, {line.rtt_s * 1e3:g} ms and {(line.bits_per_s or 0) / 1e6:g} Mbit/s"
    )
    head = ["chunks", "order", "compressed to", "table", "number", "fetched", "of chunks of"]
    head += ["over read", "requests", "mount and start"]
    return Grid(f"{title}; {rounds} rounds", head, rows)


def _row(chunk: str, order: str, made: Converted, starts: list[Start]) -> list[str]:
    fetched, decoded, read = (
        median(getattr(each, name) for each in starts)
        for name in ("fetched_bytes", "decoded_bytes", "read_bytes")
    )
    whole = median(each.mount_s + each.workload_s for each in starts)
    return [
        chunk,
        order,
        f"{made.blob_bytes / made.image_bytes:.1%}",
        f"{made.table_bytes / 1024:.0f} KiB",
        str(made.chunks),
        f"{fetched / MEBI:.1f} MiB",
        f"{decoded / MEBI:.1f} MiB",
        f"{decoded / read:.2f}",
        f"{median(each.requests for each in starts):.0f}",
        f"{whole:.2f} s",
    ]


def debian_source(folder: Path) -> str:
    """Debian with numpy, in one layer."""
    write_layout(folder / "in", [debian_layer()])
    return f"oci:{folder}/in:{TAG}"


def main() -> int:
    """Run the command; return its exit status."""
    parser = arguments("benchmarks.layouts", __doc__)
    parser.add_argument("--image", metavar="IMAGE", help="of tar layers (default: Debian's own)")
    parser.add_argument("--sizes", action="append", metavar="SIZE", help="of chunks; repeatable")
    parser.add_argument("--rtt", type=float, default=5, metavar="MS", help="default: 5")
    parser.add_argument("--bandwidth", type=size, default=100_000_000, metavar="BITS/S")
    args = parser.parse_args()

    def measure(folder: Path) -> list[Grid]:
        line = Line(args.rtt / 1e3, args.bandwidth)
        source = args.image or debian_source(folder)
        return [compare(source, args.sizes or SIZES, line, args.rounds, folder)]

    return print_tables(args, measure)


if __name__ == "__main__":
    sys.exit(main())
