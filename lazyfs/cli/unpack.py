"""Unpack the layers of an image into files, as containerd's EROFS snapshotter keeps them.

Each layer becomes a folder DIR/<number>-<digest>/ with layer.erofs, the EROFS image with the
layer's dm-verity tree behind it, and layer.erofs.dmverity, which says what the root hash is and
where the tree begins. Zeros become holes. Chunks are checked by their digest before they are
decompressed, and by the tree; the image is checked by its diff ID before it gets its name.

A run that was interrupted leaves layer.erofs.partial, and the same command goes on from there:
what it finds is checked and not fetched again. A finished layer is checked and kept.

containerd's mount handler opens dm-verity trees of SHA-256 only, and layers have ones of SHA-512:
--verity containerd puts one of SHA-256 in its place.

Examples:
  lazyfs unpack localhost:5000/app:1.2 layers
  lazyfs unpack oci:images/app:1.2 layers --layer 3 --verity containerd
  mount -o loop,ro layers/1-0123456789ab/layer.erofs /mnt
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lazyfs.cli.interrupts import run_until_interrupted
from lazyfs.cli.options import IMAGE_HELP, access_of, add_access, add_jobs, add_platform
from lazyfs.cli.progress import open_progress
from lazyfs.cli.values import format_size
from lazyfs.errors import UnpackError, innermost
from lazyfs.localname import parse_local_image
from lazyfs.unpack.image import unpack_image
from lazyfs.unpack.options import TreeChoice, UnpackOptions
from lazyfs.unpack.results import LayerResult, UnpackResult
from registry.transports import open_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("directory", metavar="DIR", type=Path, help="made if it does not exist")
    parser.add_argument(
        "--layer",
        metavar="N",
        type=int,
        action="append",
        default=[],
        help="only this layer, counted from 1 at the bottom; may be repeated",
    )
    parser.add_argument(
        "--verity",
        choices=[choice.value for choice in TreeChoice],
        default=TreeChoice.LAYER.value,
        help="which dm-verity tree comes behind the image: the layer's own, if it has one "
        "(default); one that containerd can mount; none",
    )
    add_platform(parser)
    add_jobs(parser)
    add_access(parser)
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Unpack; return the exit status."""
    if parse_local_image(args.image) is not None:
        raise UnpackError(f"{args.image} is unpacked already: a plain file, ready to be mounted")
    try:
        result = run_until_interrupted(_unpack, args)
    except BaseException as error:
        if isinstance(innermost(error), KeyboardInterrupt):
            print(
                f"lazyfs unpack: what is in {args.directory} is kept; the same command goes on "
                "from there",
                file=sys.stderr,
            )
        raise
    if args.json:
        print(json.dumps(_as_json(result), indent=2))
    elif not args.quiet:
        for layer in result.layers:
            print("\n".join(_describe(layer)))
    return 0


async def _unpack(args: argparse.Namespace) -> UnpackResult:
    options = UnpackOptions(
        platform=args.platform,
        tree=TreeChoice(args.verity),
        layers=tuple(args.layer),
        jobs=args.jobs,
    )
    with open_progress(quiet=args.quiet) as progress:
        async with open_source(args.image, access_of(args)) as source:
            return await unpack_image(source, args.directory, options, progress)


def _describe(layer: LayerResult) -> list[str]:
    head = (
        f"layer {layer.number}: {layer.outcome}, {format_size(layer.size_bytes)}, "
        f"{format_size(layer.disk_bytes)} on the disk, {format_size(layer.fetched_bytes)} fetched"
    )
    if layer.resumed_chunks:
        head += f", {layer.resumed_chunks} of {layer.chunks} chunks from an earlier run"
    lines = [head, f"  {layer.path}"]
    if layer.sidecar is not None:
        lines.append(f"  dm-verity root {layer.sidecar.root_hash} at {layer.sidecar.hash_offset}")
    return lines


def _as_json(result: UnpackResult) -> dict[str, Any]:
    return {
        "image": result.image,
        "digest": str(result.digest),
        "layers": [
            {
                "number": layer.number,
                "digest": str(layer.digest),
                "path": str(layer.path),
                "outcome": str(layer.outcome),
                "size": layer.size_bytes,
                "diskSize": layer.disk_bytes,
                "rootHash": None if layer.sidecar is None else layer.sidecar.root_hash,
                "hashOffset": None if layer.sidecar is None else layer.sidecar.hash_offset,
                "chunks": layer.chunks,
                "resumedChunks": layer.resumed_chunks,
                "fetchedBytes": layer.fetched_bytes,
            }
            for layer in result.layers
        ],
    }
