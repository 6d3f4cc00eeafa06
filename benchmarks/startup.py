"""How long the command takes to start: time and processor time, best and median of many runs.

    python -m benchmarks.startup [IMAGE] [COUNT]

Runs each command COUNT times (15), in turn. ``mount`` is of IMAGE, all of whose metadata is in the
cache by then, until the command returns; its processor time has all processes of the mount, until
it is unmounted again. Without IMAGE, only the commands that need none.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PROGRAM = (sys.executable, "-m", "lazyfs")
COUNT = 15
BARE = (("--version",), ("--help",), ("mount", "--help"), ("status",))


class Run(NamedTuple):
    """What one run of a command took."""

    wall_s: float
    processor_s: float


def run(*words: str) -> Run:
    """Run a command, which must succeed."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([*PROGRAM, *words], stdout=subprocess.DEVNULL, check=True)
    wall_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    user_s, system_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Run(wall_s, user_s + system_s)


def background_s(mountpoint: str) -> float:
    """Processor time that the processes behind a mount have taken so far."""
    from benchmarks.many import processes

    ticks = 0
    for pids in processes({mountpoint}).values():
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def mounted(image: str, folder: Path, *options: str) -> tuple[Run, Run]:
    """Mount and unmount."""
    place = folder / "mnt"
    cache = ("--cache-dir", str(folder / "cache"))
    up = run("mount", "--mkdir", *cache, *options, image, str(place))
    behind_s = background_s(str(place))
    down = run("umount", str(place))
    return Run(up.wall_s, up.processor_s + behind_s), down


def main(words: Sequence[str]) -> int:
    """Measure and print a table."""
    image = words[0] if words else None
    count = int(words[1]) if len(words) > 1 else COUNT
    found: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(count + 1):  # the first one fills the caches
            for command in BARE:
                found.setdefault(" ".join(command), []).append(run(*command))
            for driver in ("fuse", "kernel") if image else ():
                assert image is not None
                up, down = mounted(image, Path(name), "--driver", driver)
                found.setdefault(f"mount --driver {driver}", []).append(up)
                found.setdefault(f"umount ({driver})", []).append(down)
    print("| command | median | least | processor time |\n| --- | --: | --: | --: |")
    for title, runs in found.items():
        walls = [one.wall_s for one in runs[1:]]
        processor_s = statistics.median(one.processor_s for one in runs[1:])
        print(
            f"| `{title}` | {statistics.median(walls):.3f} s | {min(walls):.3f} s |"
            f" {processor_s:.3f} s |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
