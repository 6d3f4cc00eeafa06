"""What is done in a tree and timed. To add one: write a function, put it into a list below."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.system import run

PIECE_BYTES = 1 << 20
PAGE_BYTES = 4096
SEED = 20


@dataclass(frozen=True)
class Target:
    """A tree that can be read."""

    root: Path
    large: Path
    """Its largest file, an absolute path below ``root``."""


@dataclass(frozen=True)
class Workload:
    """Something that is done in a tree."""

    name: str
    run: Callable[[Target], int]
    """Does it, and returns how much was done."""
    unit: str
    """What is reported: ``s`` (time of the whole), ``MB/s`` (``run`` returns bytes) or ``us``
    (time of one of what ``run`` counts)."""
    is_start: bool = False
    """It is what one waits for, so the time from nothing to its end counts as well; those who
    take long to start do it for these only."""
    reads: bool = False
    """Reading file data is all it does: shows what each way of verifying costs."""


def import_numpy(target: Target) -> int:
    """Start Python and load numpy: what starting a program in a container is like."""
    run("chroot", target.root, "python3", "-c", "import numpy")
    return 1


def find(target: Target) -> int:
    """List every directory."""
    return run("find", target.root).count("\n")


def find_ls(target: Target) -> int:
    """List every directory with the attributes of every entry."""
    return run("find", target.root, "-ls").count("\n")


def read_in_sequence(target: Target) -> int:
    """Read the large file from its beginning to its end."""
    buffer = bytearray(PIECE_BYTES)
    done = 0
    with target.large.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
    return done


def read_at_random(target: Target, count: int) -> int:
    """Read pages of the large file in random order, none twice."""
    descriptor = os.open(target.large, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        pages = os.fstat(descriptor).st_size // PAGE_BYTES
        chosen = random.Random(SEED).sample(range(pages), min(count, pages))
        buffer = bytearray(PAGE_BYTES)
        for page in chosen:
            os.preadv(descriptor, [buffer], page * PAGE_BYTES)
    finally:
        os.close(descriptor)
    return len(chosen)


def on_a_file(random_reads: int) -> Sequence[Workload]:
    """For an image with one large file."""
    return (
        Workload("sequential", read_in_sequence, "MB/s", reads=True),
        Workload("random-4k", partial(read_at_random, count=random_reads), "us", reads=True),
    )


def on_a_tree(random_reads: int) -> Sequence[Workload]:
    """For a whole Debian."""
    return (
        Workload("import", import_numpy, "s", is_start=True),
        Workload("find", find, "s"),
        Workload("find-ls", find_ls, "s"),
        *on_a_file(random_reads),
    )
