"""Show, shrink, empty and check what mounts and conversions have kept on disk.

  ls      which images are known, and how much of each is cached
  du      how much each kind of file takes
  gc      remove what dead processes left; --cache-size: bring the cache under a size;
          --unreferenced: remove chunks of images that are not known any more
  clear   remove everything but what live mounts use; asks first, unless --force is given
  verify  prove all that can be proven, remove what is broken; exit status 1 if anything was

All of them are safe while images are mounted; no registry is asked. What is removed is fetched
again when it is read.

Examples:
  lazyfs cache ls
  lazyfs cache gc --cache-size 2GiB --unreferenced
  lazyfs cache verify --json | jq .broken
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from lazyfs.cli.options import add_jobs
from lazyfs.cli.progress import open_progress
from lazyfs.cli.values import format_size, printable, size
from lazyfs.errors import LazyfsError
from lazyfs.mount.options import default_cache_dir
from lazyfs.upkeep.check import Checked, check
from lazyfs.upkeep.folder import CacheFolder, open_cache
from lazyfs.upkeep.removal import LiveUse, Removed, clear, collect, live_use
from lazyfs.upkeep.survey import ImageUse, Survey, sizes, survey

EXIT_BROKEN = 1

Document = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="which images are known, and how much is cached")
    usage = actions.add_parser("du", help="how much each kind of file takes")
    collecting = actions.add_parser("gc", help="shrink it")
    clearing = actions.add_parser("clear", help="remove everything but what live mounts use")
    checking = actions.add_parser("verify", help="prove everything, remove what is broken")
    for action in (listing, usage, collecting, clearing, checking):
        action.add_argument(
            "--cache-dir",
            metavar="DIR",
            type=Path,
            default=default_cache_dir(),
            help="the cache folder (default: %(default)s)",
        )
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        action.add_argument("--quiet", action="store_true", help="no progress, no summary")
    collecting.add_argument(
        "--cache-size",
        metavar="SIZE",
        type=size,
        help="what chunks may take afterwards; what was not used for longest goes first",
    )
    collecting.add_argument(
        "--unreferenced",
        action="store_true",
        help="remove chunks that belong to no known image and were not used just now",
    )
    clearing.add_argument("--force", action="store_true", help="do not ask")
    clearing.add_argument(
        "--all", action="store_true", help="also what live mounts use: they fetch it again"
    )
    add_jobs(checking)


def run(args: argparse.Namespace) -> int:
    """Do what is asked for; return the exit status."""
    return trio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    if args.action == "clear" and not args.force:
        _confirm(args.cache_dir)
    async with open_cache(args.cache_dir) as folder:
        if args.action == "ls":
            _print(args, _survey_document(folder, found := await survey(folder)), _listing(found))
        elif args.action == "du":
            kinds = await trio.to_thread.run_sync(sizes, folder)
            document = {kind: asdict(kept) for kind, kept in kinds.items()}
            lines = [
                f"{format_size(kept.size_bytes):>12}  {kept.files:>8}  {kind}"
                for kind, kept in kinds.items()
            ]
            total = sum(kept.size_bytes for kept in kinds.values())
            _print(args, document, iter([*lines, f"{format_size(total):>12}            total"]))
        elif args.action == "verify":
            return await _verify(args, folder)
        else:
            removed = await _remove(args, folder)
            _print(args, asdict(removed), _removal(removed))
    return 0


async def _remove(args: argparse.Namespace, folder: CacheFolder) -> Removed:
    if args.action == "gc":
        return await collect(folder, args.cache_size, unreferenced=args.unreferenced)
    live = LiveUse()
    if not args.all:
        live = await trio.to_thread.run_sync(live_use, args.cache_dir)
    return await clear(folder, live)


async def _verify(args: argparse.Namespace, folder: CacheFolder) -> int:
    with open_progress(quiet=args.quiet) as progress:
        checked = await check(folder, args.jobs, progress)
    if args.quiet and not args.json:
        for broken in checked.broken:
            print(f"removed: {printable(broken)}")
    _print(args, asdict(checked), _verdict(checked))
    return EXIT_BROKEN if checked.broken else 0


def _confirm(path: Path) -> None:
    """Ask whether to go on.

    Raises:
        LazyfsError: no, or nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise LazyfsError(f"not asked whether to clear {path}: say --force")
    sys.stderr.write(f"Remove what is cached in {path}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise LazyfsError("nothing was removed")


def _print(args: argparse.Namespace, document: Document, lines: Iterator[str]) -> None:
    if args.json:
        print(json.dumps(document, indent=2))
    elif not args.quiet or args.action in ("ls", "du"):
        for line in lines:
            print(line)


def _listing(found: Survey) -> Iterator[str]:
    """What ``ls`` prints."""
    for use in found.images:
        yield f"{_names(use)}  {use.image.digest}  {format_size(use.kept.size_bytes)} cached"
        for number, layer in enumerate(use.layers, 1):
            if layer.chunks is None:
                told = "not known: its chunk table is not kept"
            else:
                told = f"{layer.chunks_kept} of {layer.chunks} chunks"
                told += f", {format_size(layer.kept.size_bytes)}"
            yield f"  layer {number}  {layer.digest}  {told}"
    rest = sum(chunk.charged_bytes for chunk in found.unattributed)
    yield (
        f"{format_size(found.total.size_bytes)} in {found.total.files} chunks; "
        f"{format_size(rest)} in {len(found.unattributed)} belong to no known image"
    )


def _names(use: ImageUse) -> str:
    return printable(", ".join(use.image.names)) or "(no name)"


def _survey_document(folder: CacheFolder, found: Survey) -> Document:
    return {
        "path": str(folder.path),
        "chunks": found.total.files,
        "bytes": found.total.size_bytes,
        "unattributed": {
            "chunks": len(found.unattributed),
            "bytes": sum(chunk.charged_bytes for chunk in found.unattributed),
        },
        "images": [
            {
                "names": list(use.image.names),
                "digest": use.image.digest,
                "bytes": use.kept.size_bytes,
                "layers": [
                    {
                        "digest": layer.digest,
                        "blob_bytes": layer.blob_bytes,
                        "chunks": layer.chunks,
                        "chunks_cached": layer.chunks_kept,
                        "bytes": layer.kept.size_bytes,
                    }
                    for layer in use.layers
                ],
            }
            for use in found.images
        ],
    }


def _removal(removed: Removed) -> Iterator[str]:
    """What ``gc`` and ``clear`` print."""
    yield (
        f"removed {removed.chunks} chunks ({format_size(removed.chunk_bytes)}), "
        f"{removed.documents} documents, {removed.conversions} known conversions, "
        f"{removed.leftovers} files of dead processes"
    )
    yield from (f"stays: {printable(stays)}" for stays in removed.stays)


def _verdict(checked: Checked) -> Iterator[str]:
    """What ``verify`` prints."""
    yield from (f"removed: {printable(broken)}" for broken in checked.broken)
    verdict = f"{len(checked.broken)} broken and removed" if checked.broken else "all is well"
    yield f"{checked.chunks} chunks and {checked.documents} documents are good: {verdict}"
    if checked.unprovable:
        yield (
            f"note: {checked.unprovable} chunks ({format_size(checked.unprovable_bytes)}) cannot "
            "be proven without their image; a read proves them"
        )
