"""Startup profiles of mounts: asks a daemon what was read, and finds the files of it."""

import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

from lazyfs.erofs.compressed.runs import Encoded
from lazyfs.erofs.datamap import run_end
from lazyfs.erofs.extents import METABOX, Extent
from lazyfs.errors import MountError, ProfileError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.nodes import place_of
from lazyfs.image.single import SingleTree
from lazyfs.inspect import walk
from lazyfs.model import Nid
from lazyfs.mount.assemble import OpenedImage, open_image
from lazyfs.mount.control import ask
from lazyfs.mount.options import FUSE, MountOptions
from lazyfs.mount.runtime import KnownMount
from lazyfs.profile.document import (
    MAX_PATH_BYTES,
    SCHEMA_VERSION,
    FileRange,
    Profile,
    profile_of,
)
from lazyfs.profile.files import FilesOfBlocks, Placed

ANSWER_WITHIN_S = 10.0
"""A long recording is some megabytes of JSON."""

WHOLE_FILE = 1 << 62


@dataclass(frozen=True, slots=True)
class Reads:
    """What was read in a mount so far."""

    image: str
    """The name by which the image can be opened, with ``options``."""
    options: MountOptions
    profile: Profile
    """Without files."""
    complete: bool
    """Whether everything since the mount began is in it."""
    why_not: str = ""


def ask_for_reads(mount: KnownMount) -> Reads:
    """What the readers of a live mount have used.

    Raises:
        MountError: its daemon does not tell.
        ProfileError: it records nothing.
    """
    _refuse_local(mount)
    try:
        answer = ask(mount.folder.control, ANSWER_WITHIN_S, {"reads": ""})
    except MountError:
        _refuse_local(mount)  # by now it may be: then its daemon has just ended
        raise
    if "problem" in answer:
        raise ProfileError(f"{mount.state.mountpoint}: {answer['problem']}")
    if "blocks" not in answer:
        raise MountError("the daemon is of a version that records nothing; lazyfs restart helps")
    options = answer["options"]
    if not isinstance(options, str):
        raise MountError("the daemon's answer is not a recording")
    known = MountOptions.from_json(options)
    document = {**answer, "schemaVersion": SCHEMA_VERSION, "runs": 1, "files": []}
    why_not = ""
    if mount.state.restarts:
        why_not = "the daemon was replaced meanwhile: what was read before is missing"
    elif not answer["complete"]:
        why_not = "too much was read: the end is missing"
    elif known.promote:
        why_not = "what is read of layers that are local files by now (--promote) is missing"
    return Reads(
        image=str(answer["name"]),
        options=known,
        profile=profile_of(document),
        complete=not why_not,
        why_not=why_not,
    )


def _refuse_local(mount: KnownMount) -> None:
    if mount.local:
        raise ProfileError(f"{mount.state.mountpoint} is served by local files: nobody records")


async def with_files(reads: Reads) -> Profile:
    """The profile of what was read, with the files that the blocks belong to.

    All metadata of the image are read, through the cache of the mount.

    Raises:
        LazyfsError: they cannot be.
    """
    options = replace(reads.options, prefetch="none", layers=False, driver=FUSE, promote=False)
    async with open_image(reads.image, options) as opened:
        if not isinstance(opened, OpenedImage):
            raise ProfileError(f"{reads.image} has no layers")
        found = FilesOfBlocks(reads.profile.blocks)
        reports = opened.explainer.reports
        numbers = {id(report.opened.reader): number for number, report in enumerate(reports)}
        for layer in opened.explainer.layers:
            async for placed in _files_of(layer, numbers):
                found.add(placed)
    return replace(reads.profile, files=found.ranges())


async def _files_of(layer: ErofsLayer, numbers: Mapping[int, int]) -> AsyncIterator[list[Placed]]:
    """Where the data of each regular file of a layer are.

    Data inside of metadata blocks are left out: that such a block was read does not say why, and
    they are where the metadata are, however files are laid out.
    """
    own = numbers[id(layer.device(0))]
    block_bytes = layer.image.superblock.block_bytes
    seen: set[Nid] = set()
    async for path, node, attributes in walk(SingleTree(layer)):
        if not stat.S_ISREG(attributes.mode) or not 0 < len(path) <= MAX_PATH_BYTES:
            continue
        nid = place_of(node).nid
        if attributes.nlink > 1:
            if nid in seen:
                continue
            seen.add(nid)
        inode = await layer.inode(nid)
        offset = 0
        while runs := await layer.run(layer.image.extents(inode, offset, WHOLE_FILE)):
            yield [
                Placed(FileRange(own, path, run.offset, run.length), number, run.address, stored)
                for run in runs
                if isinstance(run, Extent | Encoded)
                and run.device != METABOX
                and run.address % block_bytes == 0
                and (number := numbers.get(id(layer.device(run.device)))) is not None
                for stored in [run.stored_bytes if isinstance(run, Encoded) else run.length]
            ]
            offset = run_end(runs[-1])
