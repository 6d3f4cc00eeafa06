"""Startup profiles of the images, recorded from mounts; and images with hot data in front."""

import json
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.contenders import Lazyfs, State
from benchmarks.matrix.contenders import NO_PROFILE
from benchmarks.matrix.images import MatrixImage
from benchmarks.matrix.workloads import WORKLOADS
from benchmarks.system import run
from lazyfs.profile.document import BLOCK_BYTES, BlockRun, decode_profile

FORMS = ("tar", "seekable", "hot")
LAZYFS = (sys.executable, "-m", "lazyfs")


def make_profiles(image: MatrixImage, registry: str, storage: Path, folder: Path) -> dict[str, int]:
    """Record the starts of an image, push the profile, and make the image's hot-first form.

    Everything goes straight to the registry, and is kept there from run to run.

    Returns:
        For each form of the image the bytes that its profile makes a mount fetch (whole frames),
        and the bytes of the blocks that it names, as they are when decoded.

    Raises:
        BenchmarkError: a program failed.
    """
    note = storage / f"matrix-{image.name}-profile.json"
    if not note.exists():
        tar, seekable, hot = (f"{registry}/{image.name}:{form}" for form in FORMS)
        profile = folder / f"{image.name}.profile"
        hot_profile = folder / f"{image.name}-hot.profile"
        run(*LAZYFS, "profile", "merge", *_recorded(image, seekable, folder), "-o", profile)
        run(*LAZYFS, "profile", "push", profile, seekable)
        words = ("--profile", profile, "--profile-out", hot_profile, tar, hot)
        run(*LAZYFS, "convert", "--quiet", *words)
        run(*LAZYFS, "profile", "push", hot_profile, hot)
        found = {}
        for form, file, name in (("", profile, seekable), ("hot_", hot_profile, hot)):
            fetched, named = _amounts(file, name)
            found[f"{form}profiled_bytes"], found[f"{form}profile_blocks_bytes"] = fetched, named
        note.write_text(json.dumps(found))
    kept: dict[str, int] = json.loads(note.read_text())
    return kept


def _recorded(image: MatrixImage, name: str, folder: Path) -> list[Path]:
    """A profile of each workload that is a start."""
    mount = Lazyfs(f"recording-{image.name}", folder, name, remote=True, options=NO_PROFILE)
    files = []
    for workload in WORKLOADS[image.name]:
        if workload.is_start:
            mount.prepare(State.COLD)
            try:
                mount.start(State.COLD)
                workload.run(mount.root)
                files.append(folder / f"{image.name}-{workload.name}.profile")
                run(*LAZYFS, "profile", "record", mount.root, "-o", files[-1])
            finally:
                mount.stop()
    return files


def _amounts(file: Path, name: str) -> tuple[int, int]:
    profile = decode_profile(file.read_bytes())
    layers = json.loads(run(*LAZYFS, "inspect", "--json", "--chunks", name))["layers"]
    chunks = {
        layer["digest"]: [(chunk["image_offset"], chunk["frame_bytes"]) for chunk in found]
        for layer in layers
        if (found := layer.get("chunks"))
    }
    fetched = 0
    for number, digest in enumerate(profile.layers):
        blocks = [block for block in profile.blocks if block.layer == number]
        fetched += frames_bytes(chunks.get(digest, []), blocks)
    return fetched, BLOCK_BYTES * sum(block.length for block in profile.blocks)


def frames_bytes(chunks: Sequence[tuple[int, int]], blocks: Iterable[BlockRun]) -> int:
    """Bytes of all frames that have one of some blocks, each frame once.

    Args:
        chunks: where each begins in the image, and the bytes of its frame, in order.
        blocks: of this layer.
    """
    starts = [start for start, _ in chunks]
    touched: set[int] = set()
    for block in blocks:
        first = bisect_right(starts, block.first * BLOCK_BYTES) - 1
        last = bisect_right(starts, block.end * BLOCK_BYTES - 1) - 1
        touched.update(range(max(first, 0), last + 1))
    return sum(chunks[number][1] for number in touched)
