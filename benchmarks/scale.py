"""Images that are large in one way: time to mount, memory of the daemon, bytes fetched.

    python -m benchmarks.scale [--layers N] [--files N] [--gigabytes N] [--seconds N] [--only NAME]

Makes two images, pushes them to a registry on loopback, and mounts each by both drivers: ``files``
has 100 layers and a million files together, converted by ``lazyfs convert``, whose cost is printed
too; ``huge`` has one file of 100 GB, all of it blocks of the image (zeros but for a mark now and
then, so that the blob is small; its hash tree of 1.6 GB is not). Needs root, 8 GB of disk and,
for the conversion, some minutes. Nothing is left.

Memory is the daemon's: resident (RSS) and its own part of that (PSS). The curve is taken at equal
distances over SECONDS of random reads and lookups with the page cache dropped before each sample.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.many import lazyfs, processes
from benchmarks.system import drop_caches, memory_of, tidy
from tests.support.converted import push
from tests.support.images import TAG, write_layout
from tests.support.large_images import CHUNK, huge_image, huge_layer, many_layers, mark_at, path_of
from tests.support.registry_server import RegistryServer, running_registry

DRIVERS = ("fuse", "kernel")
SAMPLES = 20
CACHE_LIMIT = "1GiB"
MEBI = 1 << 20
GIGA = 10**9 // 4096 * 4096
HUGE_MARKS = 64 * CHUNK
READ_BYTES = 64 << 10


@dataclass
class Row:
    """What was seen of one mount; memory in MiB."""

    title: str
    mount_s: float
    memory: dict[str, float] = field(default_factory=dict)
    """Resident and proportional, by when."""
    curve: list[float] = field(default_factory=list)
    times_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An image and what is done with a mount of it."""

    title: str
    image: str
    first_read: Callable[[Path], object]
    walk: Callable[[Path], object]
    touch: Callable[[Path, random.Random], object]
    """Somewhere, at random."""


def daemon_of(place: Path) -> int:
    """The process that serves a mount."""
    [pid] = processes({str(place)})["daemon"]
    return pid


def note(row: Row, place: Path, when: str) -> None:
    """Take down the memory."""
    found = memory_of(daemon_of(place))
    row.memory[when] = found["rss_bytes"] / MEBI
    row.memory[f"{when}, own"] = found["pss_bytes"] / MEBI
    row.memory["peak"] = found["peak_rss_bytes"] / MEBI


@contextmanager
def mounted(case: Case, driver: str, folder: Path) -> Iterator[tuple[Path, float]]:
    """A mount from an empty cache, and how long it took."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name) / "mnt"
        cache = ("--cache-dir", f"{name}/cache", "--cache-size", CACHE_LIMIT)
        words = ("mount", "--mkdir", "--quiet", "--driver", driver, *cache, case.image, str(place))
        began_s = time.monotonic()
        lazyfs(*words)
        took_s = time.monotonic() - began_s
        try:
            yield place, took_s
        finally:
            lazyfs("umount", str(place))


def measure(case: Case, driver: str, folder: Path, seconds: float) -> Row:
    """Everything about one image by one driver."""
    with mounted(case, driver, folder) as (place, took_s):
        row = Row(f"{case.title}, {driver}", took_s)
        note(row, place, "mounted")
        for when, action in (("first read", case.first_read), ("walked", case.walk)):
            began_s = time.monotonic()
            action(place)
            row.times_s[when] = time.monotonic() - began_s
            note(row, place, when)
        chance = random.Random(7)
        for _ in range(SAMPLES):
            drop_caches()
            end_s = time.monotonic() + seconds / SAMPLES
            while time.monotonic() < end_s:
                case.touch(place, chance)
            row.curve.append(memory_of(daemon_of(place))["rss_bytes"] / MEBI)
        note(row, place, "in the end")
        [status] = json.loads(lazyfs("status", "--json", str(place)))
        row.times_s["fetched MB"] = status["totals"]["fetched_bytes"] / 1e6
    return row


def find(top: Path) -> int:
    """List all of a tree with attributes, as ``find -size`` does; how many entries."""
    command = ["find", str(top), "-size", "+1000k", "-printf", "x"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return 0


def files_case(registry: RegistryServer, folder: Path, layers: int, files: int) -> Case:
    """Make and push the image of many files; print what the conversion took."""
    layout = many_layers(folder / "many", layers, files)
    image = f"{registry.host}/files:lazy"
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    lazyfs("convert", "--quiet", "--no-cache", f"oci:{layout}:{TAG}", image)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"converting {layers} layers of {files} files: {time.monotonic() - began_s:.0f} s, "
        f"{processor_s:.0f} s of processor time, at most {after.ru_maxrss / 1024:.0f} MiB"
    )

    def touch(place: Path, chance: random.Random) -> None:
        path = path_of(chance.randrange(layers), chance.randrange(files))
        assert (place / path).read_text() == f"{path}\n"

    return Case(
        f"{layers} layers, {layers * files} files",
        image,
        lambda place: (place / path_of(layers - 1, 0)).read_bytes(),
        find,
        touch,
    )


def huge_case(registry: RegistryServer, folder: Path, gigabytes: int) -> Case:
    """Make and push the image of one huge file."""
    work = folder / "huge"
    work.mkdir()
    huge = huge_image(work, gigabytes * GIGA, HUGE_MARKS)
    layer = huge_layer(huge, work / "blob", verity=True)
    write_layout(work / "layout", [layer])
    layer.path.unlink()
    push(work / "layout", TAG, f"{registry.host}/huge:lazy")
    print(f"image of {huge.size_bytes / 1e9:.0f} GB in a blob of {layer.size / 1e6:.0f} MB")

    def read(place: Path, offset: int) -> bytes:
        with (place / "huge").open("rb", 0) as file:
            return os.pread(file.fileno(), READ_BYTES, offset)

    def touch(place: Path, chance: random.Random) -> None:
        offset = chance.randrange(huge.file_size // CHUNK) * CHUNK
        found = read(place, offset)
        assert found.startswith(bytes(16) if offset % HUGE_MARKS else mark_at(offset))

    return Case(
        f"one file of {gigabytes} GB",
        f"{registry.host}/huge:lazy",
        lambda place: read(place, 0),
        find,
        touch,
    )


def show(row: Row) -> None:
    """Print what was seen."""
    print(f"\n{row.title}: mounted in {row.mount_s:.2f} s")
    print("  memory, MiB:", ", ".join(f"{when} {size:.0f}" for when, size in row.memory.items()))
    print("  seconds:", ", ".join(f"{what} {number:.2f}" for what, number in row.times_s.items()))
    print("  over time, MiB:", " ".join(f"{size:.0f}" for size in row.curve), flush=True)


def main() -> int:
    """Make, measure, print, remove."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--files", type=int, default=10_000, help="of each layer")
    parser.add_argument("--gigabytes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120, help="of random reads")
    parser.add_argument("--only", choices=("files", "huge"))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lazyfs-scale-"))
    try:
        with running_registry(folder / "registry") as registry:
            cases = []
            if args.only != "huge":
                cases.append(files_case(registry, folder, args.layers, args.files))
            if args.only != "files":
                cases.append(huge_case(registry, folder, args.gigabytes))
            for case in cases:
                for driver in DRIVERS:
                    show(measure(case, driver, folder, args.seconds))
    finally:
        tidy(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
