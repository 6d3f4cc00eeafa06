"""Faults of the disk that the cache lies on, and of what is found there."""

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.image import WARM
from faults.model import Fault
from faults.mounts import RIGHT, SHORT_S
from faults.stage import Stage
from tests.support.mounting import turn_read_only

DISK_BYTES = 24 << 20
MOST_REMOVALS = 100


def cached_files(cache: Path, kind: str = "chunks") -> list[Path]:
    """The files of the cache, or of its documents."""
    return sorted(path for path in (cache / kind).rglob("*") if path.is_file())


def damaged(harm: Callable[[Path], None], stage: Stage) -> str:
    """All is cached; then each file of the cache is harmed; all is read by a new mount, twice.

    Then the registry goes: what was harmed must have been replaced.
    """
    server = stage.registry()
    with stage.mounted(server.host) as mount:
        if (seen := mount.outcome()) != RIGHT:
            return seen
    for path in (*cached_files(stage.cache), *cached_files(stage.cache, "documents")):
        harm(path)
    with stage.mounted(server.host) as mount:
        healed = f"{mount.outcome()} then {mount.outcome()}"
    server.stop()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        return f"{healed}; registry gone: {mount.outcome()}"


def harmed_meanwhile(harm: Callable[[Path], None], stage: Stage) -> str:
    """The files of the cache are harmed while the image is mounted."""
    server = stage.registry()
    with stage.mounted(server.host) as mount:
        before = mount.outcome()
        for path in cached_files(stage.cache):
            harm(path)
        return f"{before} then {mount.outcome()}"


def flip(path: Path) -> None:
    """One bit is another one."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def halve(path: Path) -> None:
    """Torn: the second half never reached the disk."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """As a file is whose content never reached the disk."""
    os.truncate(path, 0)


def zero(path: Path) -> None:
    """As long as it was, of zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def zero_end(path: Path) -> None:
    """The second half of zeros."""
    half = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(half)
        file.write(bytes(path.stat().st_size - half))


def lengthen(path: Path) -> None:
    """Something behind what belongs there."""
    with path.open("ab") as file:
        file.write(b"and more")


def make_folder(path: Path) -> None:
    """A folder where a file was."""
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    """A pipe where a file was: opening it would wait for a writer."""
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    """A symbolic link to another file."""
    path.unlink()
    path.symlink_to("/etc/passwd")


def from_the_future(path: Path) -> None:
    """Times that cannot be right."""
    os.utime(path, (2**33, 2**33))


def from_the_past(path: Path) -> None:
    """The beginning of time."""
    os.utime(path, (0, 0))


# Disks


@contextlib.contextmanager
def mounted_disk(folder: Path, *words: str) -> Iterator[Path]:
    """Something mounted for the block; detached afterwards, whoever uses it."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *words, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


def small_disk(stage: Stage) -> str:
    """A disk that is full after two chunks (ENOSPC)."""
    server = stage.registry()
    options = ("-t", "tmpfs", "-o", "size=300k", "tmpfs")
    with (
        mounted_disk(stage.folder / "disk", *options) as disk,
        stage.mounted(server.host, "--cache-dir", disk / "cache") as mount,
    ):
        return f"{mount.outcome()} then {mount.outcome()}"


def full_from_the_start(stage: Stage) -> str:
    """A disk without any room."""
    server = stage.registry()
    with mounted_disk(stage.folder / "disk", "-t", "tmpfs", "-o", "size=300k", "tmpfs") as disk:
        with contextlib.suppress(OSError):
            (disk / "filler").write_bytes(bytes(1 << 20))
        with stage.mounted(server.host, "--cache-dir", disk / "cache") as mount:
            return f"{mount.outcome()} then {mount.outcome()}"


def no_inodes(stage: Stage) -> str:
    """A disk with room, but without inodes for more files."""
    server = stage.registry()
    options = ("-t", "tmpfs", "-o", "size=64m,nr_inodes=25", "tmpfs")
    with (
        mounted_disk(stage.folder / "disk", *options) as disk,
        stage.mounted(server.host, "--cache-dir", disk / "cache") as mount,
    ):
        return f"{mount.outcome()} then {mount.outcome()}"


def read_only(filled: bool, stage: Stage) -> str:
    """A disk that cannot be written, with the image in its cache or with nothing."""
    server = stage.registry()
    with mounted_disk(stage.folder / "disk", "-t", "tmpfs", "tmpfs") as disk:
        options = ("--cache-dir", disk / "cache")
        if filled:
            with stage.mounted(server.host, *options) as mount:
                mount.outcome()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, capture_output=True)
        with stage.mounted(server.host, *options) as mount:
            return f"{mount.outcome()} then {mount.outcome()}"


def read_only_meanwhile(stage: Stage) -> str:
    """A disk that becomes read-only while the image is mounted, as after an error."""
    server = stage.registry()
    with (
        mounted_disk(stage.folder / "disk", "-t", "tmpfs", "tmpfs") as disk,
        stage.mounted(server.host, "--cache-dir", disk / "cache") as mount,
    ):
        before = mount.outcome(WARM)
        turn_read_only(disk)
        return f"{before} then {mount.outcome()}"


def failing(stage: Stage) -> str:
    """A disk that gives EIO: the file below a loop device is cut off while it is in use."""
    server = stage.registry()
    backing = stage.folder / "disk.img"
    with backing.open("wb") as file:
        file.truncate(DISK_BYTES)
    make = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-b", "4096", str(backing)]
    subprocess.run(make, check=True, capture_output=True)
    options = ("-o", "loop,errors=continue", str(backing))
    with (
        mounted_disk(stage.folder / "disk", *options) as disk,
        stage.mounted(server.host, "--cache-dir", disk / "cache") as mount,
    ):
        before = mount.outcome()
        files = cached_files(disk / "cache")
        subprocess.run(["sync", "--file-system", disk], check=True)
        os.truncate(backing, 1 << 20)
        broken = sum(not _readable(path) for path in files)
        seen = f"{before} then {mount.outcome()}"
    return seen if broken else f"{seen}, but the disk never failed"


def _readable(path: Path) -> bool:
    """Whether a file can be read from the disk, and not only from memory."""
    try:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read()
    except OSError:
        return False
    return True


def cache_removed(stage: Stage) -> str:
    """Somebody removes the cache folder while the image is mounted."""
    server = stage.registry()
    with stage.mounted(server.host) as mount:
        before = mount.outcome(WARM)
        for _ in range(MOST_REMOVALS):
            shutil.rmtree(stage.cache, ignore_errors=True)  # chunks may still be on their way
            if not stage.cache.exists():
                break
        return f"{before} then {mount.outcome()} then {mount.outcome()}"


def cache_is_a_file(stage: Stage) -> str:
    """There is a file where the cache folder should be."""
    server = stage.registry()
    stage.cache.write_text("in the way")
    with stage.mounted(server.host) as mount:
        return mount.outcome()


def tight(stage: Stage) -> str:
    """A cache that holds less than what is read again and again."""
    server = stage.registry()
    with stage.mounted(server.host, "--cache-size", "200KiB") as mount:
        seen = f"{mount.outcome()} then {mount.outcome()}"
        cache = mount.status()["cache"]
        assert isinstance(cache, dict)
        kept = cache["usage_bytes"] <= 200 << 10
    return f"{seen}, {'limit kept' if kept else 'limit passed'}"


def side_by_side(stage: Stage) -> str:
    """Four mounts begin at the same time on a cache that is not there yet."""
    server = stage.registry()
    seen: list[str] = []

    def one() -> None:
        with stage.mounted(server.host) as mount:
            seen.append(mount.outcome())

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return " and ".join(sorted(set(seen))) if len(seen) == 4 else f"{len(seen)} of 4 mounted"


def healed(name: str, does: str, harm: Callable[[Path], None]) -> Fault:
    """Files of the cache that are not what was written, found before or during a mount."""
    return Fault(
        f"cache-{name}", does, "right then right; registry gone: right", partial(damaged, harm)
    )


TWICE = "right then right"
FAULTS = (
    healed("flipped", "a bit of each cached file is flipped", flip),
    healed("torn", "each cached file is cut to its half", halve),
    healed("empty", "each cached file is empty", empty),
    healed("zeroed", "each cached file is of zeros", zero),
    healed("half-zeroed", "the second half of each cached file is of zeros", zero_end),
    healed("longer", "each cached file has something behind its end", lengthen),
    healed("pipe", "a named pipe in place of each cached file", make_pipe),
    healed("link", "a symbolic link in place of each cached file", make_link),
    healed("future", "each cached file is from the year 2242", from_the_future),
    healed("past", "each cached file is from the year 1970", from_the_past),
    Fault(
        "cache-flips",
        "a bit of each cached file is flipped while mounted",
        TWICE,
        partial(harmed_meanwhile, flip),
    ),
    Fault(
        "cache-tears",
        "each cached file is cut to its half while mounted",
        TWICE,
        partial(harmed_meanwhile, halve),
    ),
    Fault(
        "cache-folders",
        "a folder in place of each cached file, while mounted",
        TWICE,
        partial(harmed_meanwhile, make_folder),
    ),
    Fault(
        "cache-unlinked",
        "each cached file is removed while mounted",
        TWICE,
        partial(harmed_meanwhile, Path.unlink),
    ),
    Fault(
        "cache-removed",
        "the cache folder is removed while mounted",
        "right then right then right",
        cache_removed,
    ),
    Fault("cache-file", "a file where the cache folder should be", RIGHT, cache_is_a_file),
    Fault("cache-tight", "a cache of 200 KiB", f"{TWICE}, limit kept", tight),
    Fault("cache-shared", "four mounts begin at once on a new cache", RIGHT, side_by_side),
    Fault("disk-full", "ENOSPC after some chunks", TWICE, small_disk),
    Fault("disk-full-before", "ENOSPC from the beginning", TWICE, full_from_the_start),
    Fault("disk-inodes", "ENOSPC for want of inodes", TWICE, no_inodes),
    Fault(
        "disk-read-only",
        "a read-only disk with the image in its cache",
        TWICE,
        partial(read_only, True),
    ),
    Fault(
        "disk-read-only-empty", "a read-only disk without a cache", TWICE, partial(read_only, False)
    ),
    Fault(
        "disk-turns-read-only",
        "the disk becomes read-only while mounted",
        TWICE,
        read_only_meanwhile,
    ),
    Fault("disk-eio", "EIO for what is cached", TWICE, failing),
)
