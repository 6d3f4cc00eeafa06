"""A soak: many readers of one mount under random faults, its daemon killed again and again.

    python -m tests.support.soak --seconds 300

A real registry, a proxy before it that disturbs (``tests.support.faulty_proxy``), an image that is
larger than the cache, so that fetching never ends, and readers that compare each byte with the
original. The mount is made once. For the first part of the time the daemon gets SIGKILL at random
moments, for the rest one daemon lives on under faults, so that its memory can be looked at. Prints
a report; ends with 1 if something was violated (``violations``).
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from lazyfs.mount import roles
from lazyfs.profile.document import BLOCK_BYTES, BlockRun
from tests.support.converted import push as push_image
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.lazy_mounts import LazyMount, convert, mounted
from tests.support.mounting import kill, process_of
from tests.support.profiles import profile_of, push
from tests.support.registry_server import running_registry
from tests.support.soak_reader import STUCK_S, Seen, together
from tests.support.survival import open_files
from tests.support.tiny_image import write_layout

READER = Path(__file__).with_name("soak_reader.py")
PROCESSES = 8
FILES_PER_MIB = 4
LARGEST_BYTES = 6 << 20
CHUNK_SIZE = "256KiB"
PROFILED_PLACES = 150
"""Of a chunk each: an eighth of the image, more than half of the cache."""
TIMEOUT_S = 10
SLACK_S = 2
"""What the handlers add to the timeout (``lazyfs.fuse.operations.DEADLINE_SLACK_S``)."""
ASKED_TWICE = 2
"""One call may need two requests of the kernel (``soak_reader.CALL_BYTES``)."""
NOISE_S = 10.0
"""For a machine that is busy with other things."""
KILL_EVERY_S = (1.0, 12.0)
KILLS_WANTED = 3
KILLING_SHARE = 0.6
SAMPLE_EVERY_S = 1.0
SETTLED_S = 20.0
"""A daemon that is so old has its caches in memory filled."""

MOST_RSS_BYTES = 256 << 20
MOST_FILES = 600
GROWTH = 1.25
GROWTH_BYTES = 24 << 20
SUPERVISOR_GROWTH_BYTES = 2 << 20


@dataclass(frozen=True)
class Sample:
    """What a process had at a moment."""

    at_s: float
    pid: int
    rss_bytes: int
    files: int


@dataclass
class Report:
    """What a soak saw."""

    seconds: float
    readers: int
    image_bytes: int
    cache_bytes: int
    seen: Seen
    kills_s: list[float]
    daemons: list[Sample]
    supervisors: list[Sample]
    requests: int
    faults: dict[str, int]
    state: str
    restarts: int
    fetched_bytes: int
    """By the last daemon."""
    all_right_in_the_end: bool
    problems: list[str] = field(default_factory=list)

    def allowed_s(self, began_s: float, ended_s: float) -> float:
        """How long a read may have taken: each daemon that is killed under it begins it anew."""
        kills = sum(began_s <= killed_s <= ended_s for killed_s in self.kills_s)
        return (1 + kills) * ASKED_TWICE * (TIMEOUT_S + SLACK_S) + NOISE_S

    def violations(self) -> list[str]:
        """What must not be."""
        found = [f"wrong bytes: {what}" for what in self.seen.wrong[:10]]
        if self.seen.stuck:
            found.append(f"{self.seen.stuck} readers were stuck for {STUCK_S:g} s after the end")
        found += [
            f"a call took {ended_s - began_s:.1f} s ({outcome})"
            for began_s, ended_s, outcome in self.seen.slow
            if ended_s - began_s > self.allowed_s(began_s, ended_s)
        ]
        unexpected = set(self.seen.errors) - {"EIO"}
        found += [f"{self.seen.errors[name]} reads failed with {name}" for name in unexpected]
        if not self.all_right_in_the_end:
            found.append("without faults not everything could be read in the end")
        if self.state != "mounted" or self.restarts < 1:
            found.append(f"in the end the mount is {self.state}, {self.restarts} restarts")
        return found + self._growth() + self.problems

    def _growth(self) -> list[str]:
        found = []
        last = [sample for sample in self.daemons if sample.pid == self.daemons[-1].pid]
        settled = [s for s in last if s.at_s - last[0].at_s > SETTLED_S]
        if len(settled) > 1:
            half = len(settled) // 2
            before, after = (
                max(sample.rss_bytes for sample in part)
                for part in (settled[:half], settled[half:])
            )
            if after > before * GROWTH + GROWTH_BYTES:
                found.append(f"the daemon grew from {mib(before)} to {mib(after)}")
        if (most := max(sample.rss_bytes for sample in self.daemons)) > MOST_RSS_BYTES:
            found.append(f"a daemon had {mib(most)}")
        if (most := max(sample.files for sample in self.daemons)) > MOST_FILES:
            found.append(f"a daemon had {most} open files")
        first, end = self.supervisors[0], self.supervisors[-1]
        if end.pid != first.pid or end.files > first.files:
            found.append(f"the supervisor was {first} and is {end}")
        if end.rss_bytes > first.rss_bytes + SUPERVISOR_GROWTH_BYTES:
            found.append(f"the supervisor grew by {mib(end.rss_bytes - first.rss_bytes)}")
        return found

    def text(self) -> str:
        """For people."""
        seen = self.seen
        last = [sample for sample in self.daemons if sample.pid == self.daemons[-1].pid]
        overdue = sum(end - begin > TIMEOUT_S + SLACK_S for begin, end, _ in seen.slow)
        lines = {
            "time": f"{self.seconds:.0f} s, {self.readers} readers, --timeout {TIMEOUT_S}s",
            "image, cache": f"{mib(self.image_bytes)}, {mib(self.cache_bytes)}",
            "reads": f"{seen.reads} right, {len(seen.wrong)} wrong, {mib(seen.read_bytes)}",
            "errors": f"{sum(seen.errors.values())} {dict(seen.errors)}; "
            f"{seen.recovered} files were read again after one",
            "longest call": f"{seen.longest_s:.1f} s; {overdue} longer than "
            f"{TIMEOUT_S + SLACK_S} s; {seen.stuck} readers stuck",
            "registry": f"{self.requests} requests, {sum(self.faults.values())} disturbed: "
            + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())),
            "daemons": f"{len(self.kills_s)} killed (SIGKILL), {self.restarts} restarts, "
            f"one mount, {self.state}",
            "daemon memory": f"peak {mib(max(s.rss_bytes for s in self.daemons))}; the last one, "
            f"{last[-1].at_s - last[0].at_s:.0f} s old: "
            + " ".join(f"{s.rss_bytes >> 20}" for s in last[:: max(1, len(last) // 12)])
            + " MiB",
            "daemon files": f"at most {max(s.files for s in self.daemons)}; the last one: "
            + " ".join(str(s.files) for s in last[:: max(1, len(last) // 12)]),
            "supervisor": f"{mib(self.supervisors[0].rss_bytes)} at first, "
            f"{mib(self.supervisors[-1].rss_bytes)} at last; "
            f"{self.supervisors[0].files} and {self.supervisors[-1].files} files",
            "in the end": "all of it was read right without faults"
            if self.all_right_in_the_end
            else "NOT all of it could be read right without faults",
        }
        violations = self.violations()
        lines["violations"] = "; ".join(violations) or "none"
        return "".join(f"{name + ':':16}{text}\n" for name, text in lines.items())


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 20):.1f} MiB"


def sample(pid: int) -> Sample | None:
    """What a process has now; None if it is gone."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        rss_bytes = int(fields["VmRSS"].split()[0]) << 10
        return Sample(time.monotonic(), pid, rss_bytes, open_files(pid))
    except (OSError, KeyError):
        return None


def write_files(folder: Path, size_bytes: int, seed: int) -> dict[str, bytes]:
    """Files of all sizes, half of their bytes compressible; also as a folder."""
    chance = random.Random(seed)
    count = (size_bytes >> 20) * FILES_PER_MIB
    weights = [min(chance.paretovariate(0.9), 200.0) for _ in range(count)]
    files = {}
    for number, weight in enumerate(weights):
        size = min(LARGEST_BYTES, int(size_bytes * weight / sum(weights)))
        half = chance.randbytes(size // 2)
        files[f"d{number % 23}/f{number:05}"] = half + bytes(reversed(half)) + b"x" * (size % 2)
    while (missing := size_bytes - sum(map(len, files.values()))) > 0:
        files[f"more/{len(files):05}"] = chance.randbytes(min(missing, LARGEST_BYTES))
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


class Watch:
    """Kills daemons, and looks at what the processes of the mount need."""

    def __init__(self, mount: LazyMount, seconds: float, seed: int) -> None:
        self.kills_s: list[float] = []
        self.daemons: list[Sample] = []
        self.supervisors: list[Sample] = []
        self._folder = mount.folder
        self._chance = random.Random(seed)
        self._ends_s = time.monotonic() + seconds
        self._killing_s = seconds * KILLING_SHARE
        self._kills_until_s = time.monotonic() + self._killing_s

    def run(self) -> None:
        """Until the time is over."""
        next_kill_s = self._next_kill_s()
        while (now_s := time.monotonic()) < self._ends_s:
            self._look(roles.DAEMON, self.daemons)
            if now_s >= next_kill_s and now_s < self._kills_until_s:
                daemon = process_of(self._folder, roles.DAEMON)
                if daemon is not None:
                    kill(daemon, signal.SIGKILL)
                    self.kills_s.append(now_s)
                next_kill_s = self._next_kill_s()
            # After the first kill, which has the supervisor import what it needs for it.
            if self.kills_s and now_s - self.kills_s[0] > SAMPLE_EVERY_S:
                self._look(roles.SUPERVISOR, self.supervisors)
            time.sleep(min(SAMPLE_EVERY_S, max(0.0, next_kill_s - now_s)))

    def _next_kill_s(self) -> float:
        least_s, most_s = KILL_EVERY_S
        most_s = min(most_s, self._killing_s / KILLS_WANTED)
        return time.monotonic() + self._chance.uniform(min(least_s, most_s), most_s)

    def _look(self, role: int, samples: list[Sample]) -> None:
        pid = process_of(self._folder, role)
        found = None if pid is None else sample(pid)
        if found is not None:
            samples.append(found)


def read_all(mount: LazyMount, source: Path) -> bool:
    """Whether ``diff`` finds no difference."""
    command: list[str | Path] = ["diff", "--recursive", "--brief", source, mount.path]
    return subprocess.run(command, capture_output=True, timeout=STUCK_S * 5).returncode == 0


@contextlib.contextmanager
def reading(mount: LazyMount, source: Path, folder: Path, readers: int) -> Iterator[list[Seen]]:
    """Readers for the time of the block; the list is filled at its end."""
    stop, seen = folder / "stop", list[Seen]()
    shares = [readers // PROCESSES + (n < readers % PROCESSES) for n in range(PROCESSES)]
    processes = [
        subprocess.Popen(
            [sys.executable, READER, mount.path, source, stop, str(share), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, share in enumerate(shares)
    ]
    try:
        yield seen
        stop.touch()
        for process in processes:
            said, _ = process.communicate(timeout=STUCK_S * 2)
            seen.append(Seen(**json.loads(said)))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def soak(folder: Path, *, seconds: float, readers: int, image_mib: int, seed: int) -> Report:
    """Run one; ``folder`` gets the image four times."""
    image_bytes = image_mib << 20
    cache_bytes = image_bytes // 5
    files = write_files(folder / "source", image_bytes, seed)
    names = sorted(files)
    layers = [{name: files[name] for name in names[part::2]} for part in (0, 1)]
    write_layout(folder / "layout", "tar", layers, compress=False)
    del files, layers
    with running_registry(folder / "registry") as registry:
        push_image(folder / "layout", "tar", f"{registry.host}/soak:tar")
        options = ("--chunk-size", CHUNK_SIZE)
        convert(f"{registry.host}/soak:tar", f"{registry.host}/soak:lazy", *options)
        trio.run(push_scattered, f"{registry.host}/soak:lazy", image_bytes, seed)
        with faulty_proxy(registry.host, seed=seed) as proxy:
            return _soak(folder, proxy, seconds, readers, image_bytes, cache_bytes, seed)


async def push_scattered(name: str, image_bytes: int, seed: int) -> None:
    """A profile of single blocks all over both layers, so that places come together that lie apart.

    Each daemon fetches what it names while readers want something else.
    """
    chance = random.Random(seed)
    blocks = image_bytes // 2 // BLOCK_BYTES
    places = chance.sample(range(2 * blocks), PROFILED_PLACES)
    runs = [BlockRun(place % 2, place // 2, 1) for place in places]
    await push(name, await profile_of(name, *runs), "2026-01-01T00:00:00Z")


def _soak(
    folder: Path,
    proxy: FaultyProxy,
    seconds: float,
    readers: int,
    image_bytes: int,
    cache_bytes: int,
    seed: int,
) -> Report:
    options = (
        *("--cache-dir", folder / "cache", "--cache-size", str(cache_bytes)),
        *("--timeout", f"{TIMEOUT_S}s"),
    )
    proxy.quiet = True
    with mounted(f"{proxy.host}/soak:lazy", folder / "mnt", *options) as mount:
        proxy.quiet = False
        with reading(mount, folder / "source", folder, readers) as seen:
            watch = Watch(mount, seconds, seed)
            began_s = time.monotonic()
            watch.run()
            ended_s = time.monotonic()
        proxy.quiet = True
        right = read_all(mount, folder / "source")
        status = mount.status()
        return Report(
            ended_s - began_s,
            readers,
            image_bytes,
            cache_bytes,
            together(seen),
            watch.kills_s,
            watch.daemons,
            watch.supervisors,
            proxy.requests,
            dict(proxy.faults),
            str(status["state"]),
            status["survival"]["restarts"],
            status["totals"]["fetched_bytes"],
            right,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--image-mib", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    base = os.environ.get("TMPDIR", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="lazyfs-soak-", dir=base) as folder:
        report = soak(
            Path(folder),
            seconds=args.seconds,
            readers=args.readers,
            image_mib=args.image_mib,
            seed=args.seed,
        )
    sys.stdout.write(report.text())
    return int(bool(report.violations()))


if __name__ == "__main__":
    sys.exit(main())
