"""Many images mounted at once: time, memory and descriptors for each.

    python -m benchmarks.many IMAGE [COUNT]

Mounts IMAGE COUNT times (50) with one cache, lists and reads a little in each, and prints what
the processes behind the mounts hold. PSS counts memory that processes share only once.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lazyfs.mount import roles

PROGRAM = (sys.executable, "-m", "lazyfs")
COUNT = 50


def lazyfs(*words: str) -> str:
    """Run a command, which must succeed; what it prints."""
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=True)
    return done.stdout


def memory_kib(pid: int) -> int:
    """Proportional set size of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def processes(mountpoints: set[str]) -> dict[str, list[int]]:
    """Supervisors and daemons of mounts."""
    found: dict[str, list[int]] = {"supervisor": [], "daemon": []}
    for state in Path("/run/lazyfs").glob("*/state.json"):
        if json.loads(state.read_text())["mountpoint"] not in mountpoints:
            continue
        kinds = (("supervisor", roles.SUPERVISOR), ("daemon", roles.DAEMON))
        for kind, role in kinds:
            if pid := roles.holder(str(state.parent / roles.FILE_NAME), role):
                found[kind].append(pid)
    return found


def look(mountpoint: Path) -> None:
    """What a container does first: go through some folders, read a program."""
    for folder in ("", "etc", "usr/bin"):
        if (mountpoint / folder).is_dir():
            for entry in (mountpoint / folder).iterdir():
                entry.lstat()
    for program in ("usr/bin/env", "bin/busybox"):
        if (mountpoint / program).is_file():
            (mountpoint / program).read_bytes()


def main(words: Sequence[str]) -> int:
    """Measure, print a table, take everything down."""
    image, count = words[0], int(words[1]) if len(words) > 1 else COUNT
    took_s = []
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{number}" for number in range(count)]
        try:
            for place in places:
                began_s = time.monotonic()
                lazyfs("mount", "--mkdir", "--cache-dir", f"{folder}/cache", image, str(place))
                took_s.append(time.monotonic() - began_s)
                look(place)
            for kind, pids in processes({str(place) for place in places}).items():
                sizes = [memory_kib(pid) / 1024 for pid in pids]
                files = [len([*Path(f"/proc/{pid}/fd").iterdir()]) for pid in pids]
                print(
                    f"| {kind} | {len(pids)} | {statistics.median(sizes):.1f} MiB | "
                    f"{sum(sizes):.0f} MiB | {statistics.median(files):.0f} |"
                )
            print(f"mounting: first {took_s[0]:.2f} s, median {statistics.median(took_s):.2f} s")
        finally:
            for place in places[: len(took_s)]:
                lazyfs("umount", str(place))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
