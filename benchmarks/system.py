"""Commands, mounts, caches and memory of the machine that the benchmarks run on."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMMAND_WITHIN_S = 600
POLL_EVERY_S = 0.02
END_WITHIN_S = 10
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message says why."""


def run(*command: str | Path, check: bool = True) -> str:
    """Run a command to its end and return its standard output.

    Raises:
        BenchmarkError: it failed or took too long; the message has its last words.
    """
    words = [os.fspath(word) for word in command]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=COMMAND_WITHIN_S,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{words[0]} took more than {COMMAND_WITHIN_S} s") from error
    except OSError as error:
        raise BenchmarkError(f"{words[0]} cannot be run: {error}") from error
    if check and done.returncode:
        raise BenchmarkError(f"{' '.join(words)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    """Poll until a condition holds.

    Raises:
        BenchmarkError: it does not hold in time.
    """
    give_up = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up:
            raise BenchmarkError(f"{what} did not come within {within_s:g} s")
        time.sleep(POLL_EVERY_S)


def drop_caches() -> None:
    """Empty the page cache and the caches of names and inodes of the whole machine."""
    os.sync()
    DROP_CACHES.write_text("3")


def mounts_below(folder: Path) -> list[Path]:
    """The mountpoints in a folder, the youngest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        path = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
        if Path(path).is_relative_to(folder):
            found.append(Path(path))
    return found[::-1]


def unmount_below(folder: Path) -> None:
    """Take down every mount in a folder."""
    for options in ((), ("--lazy",)):
        for mountpoint in mounts_below(folder):
            run("umount", *options, mountpoint, check=False)


def kill(pid: int) -> None:
    """Kill a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def memory_of(pid: int) -> dict[str, float]:
    """Resident memory of a process: now, its proportional share, and its peak, in bytes."""
    names = {"Rss": "rss_bytes", "Pss": "pss_bytes", "VmHWM": "peak_rss_bytes"}
    found = {}
    for file in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            label, _, rest = line.partition(":")
            if label in names and rest.endswith(" kB"):
                found[names[label]] = float(rest.removesuffix(" kB")) * 1024
    return found


def processes_naming(folder: Path) -> list[int]:
    """Processes that have a folder, or what is in it, on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def tidy(folder: Path) -> None:
    """End what still mounts or serves something in a folder, and remove it."""
    unmount_below(folder)
    try:
        wait_until(lambda: not processes_naming(folder), "their end", END_WITHIN_S)
    except BenchmarkError:
        for pid in processes_naming(folder):
            kill(pid)
    unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until tidying up, by whatever commands, has come to its end."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
