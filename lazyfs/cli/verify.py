"""Check all of an image: every digest, chunk, hash block, data block and EROFS structure.

The report names what is broken and where; all of it is looked for, not only the first. The exit
status is 1 if anything is. Each blob is read once, and decoded into a temporary file (TMPDIR)
for the EROFS structures.

--cached looks at what mounts have kept of the image in the cache folder instead: each stored
chunk and piece of a hash tree is proven as a mount would, and only manifest and chunk tables are
fetched. --repair removes what is rotten, so that the next read fetches it anew.

Examples:
  lazyfs verify localhost:5000/app:1.2
  lazyfs verify oci:images/app:1.2 --json | jq '.layers[].findings'
  lazyfs verify localhost:5000/app:1.2 --cached --repair
  lazyfs verify erofs:layer.erofs
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lazyfs.cli.interrupts import run_until_interrupted
from lazyfs.cli.options import IMAGE_HELP, access_of, add_access, add_jobs, add_platform
from lazyfs.cli.progress import open_progress
from lazyfs.cli.values import format_size, printable
from lazyfs.localname import parse_local_image
from lazyfs.mount.options import default_cache_dir
from lazyfs.verify.cached import CacheOptions, verify_cached
from lazyfs.verify.findings import Finding, Findings, LayerReport, Report
from lazyfs.verify.image import verify_image
from lazyfs.verify.local import verify_local
from registry.transports import open_source

EXIT_BROKEN = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    add_platform(parser)
    add_jobs(parser)
    add_access(parser)
    parser.add_argument(
        "--cached", action="store_true", help="check what mounts have kept of it instead"
    )
    parser.add_argument(
        "--repair", action="store_true", help="with --cached: remove what is rotten"
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        type=Path,
        default=default_cache_dir(),
        help="with --cached: the cache folder (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print only what is broken")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Verify; return the exit status."""
    if args.repair and not args.cached:
        args.usage_error("--repair is for --cached: nothing else can be mended here")
    report = run_until_interrupted(_verify, args)
    if args.json:
        print(json.dumps(_as_json(report), indent=2))
    else:
        for line in _lines(report, quiet=args.quiet):
            print(line)
    return EXIT_BROKEN if report.broken else 0


async def _verify(args: argparse.Namespace) -> Report:
    local = parse_local_image(args.image)
    if local is not None and args.cached:
        args.usage_error("--cached is for images whose chunks are fetched")
    with open_progress(quiet=args.quiet) as progress:
        if local is not None:
            return await verify_local(args.image, local, progress)
        async with open_source(args.image, access_of(args)) as source:
            if args.cached:
                options = CacheOptions(args.cache_dir, repair=args.repair)
                return await verify_cached(source, args.platform, options, args.jobs, progress)
            return await verify_image(source, args.platform, args.jobs, progress)


def _lines(report: Report, *, quiet: bool) -> Iterator[str]:
    """The report for a person."""
    yield from (f"{line}" for line in _finding_lines("", report.findings))
    for layer in report.layers:
        if layer.findings.count or not quiet:
            yield f"layer {layer.number}: {_verdict(layer)}  {layer.digest}".rstrip()
        yield from _finding_lines("  ", layer.findings)
        if not quiet:
            yield from (f"  note: {note}" for note in layer.notes)
    if not quiet:
        yield from (f"note: {note}" for note in report.notes)
        verdict = f"{report.broken} broken" if report.broken else "all is well"
        yield f"{report.image}  {report.digest}  {verdict}"


def _verdict(layer: LayerReport) -> str:
    counts = layer.counts
    looked_at = [
        f"{count} {what}"
        for count, what in (
            (counts.chunks, "chunks"),
            (counts.hash_blocks, "hash blocks"),
            (counts.data_blocks, "data blocks"),
            (counts.inodes, "inodes"),
        )
        if count
    ]
    verdict = f"{layer.findings.count} BROKEN" if layer.findings.count else "ok"
    size = [format_size(counts.image_bytes)] if counts.image_bytes else []
    return ", ".join([verdict, *size, *looked_at])


def _finding_lines(indent: str, findings: Findings) -> Iterator[str]:
    for finding in findings.listed:
        yield f"{indent}{finding.kind}: {_where(finding)}{printable(finding.message)}"
    if findings.count > len(findings.listed):
        yield f"{indent}... and {findings.count - len(findings.listed)} more"


def _where(finding: Finding) -> str:
    """The place, with ranges as ``blob 123+456``."""
    words = []
    for name, value in finding.where.items():
        kind, _, part = name.rpartition("_")
        if part == "offset":
            words.append(f"{kind} {value}+{finding.where[f'{kind}_bytes']}")
        elif part != "bytes" or not kind:
            words.append(f"{name} {printable(str(value))}")
    return f"{', '.join(words)}: " if words else ""


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "image": report.image,
        "digest": report.digest,
        "ok": not report.broken,
        "broken": report.broken,
        "findings": _findings_as_json(report.findings),
        "notes": report.notes,
        "layers": [
            {
                "number": layer.number,
                "digest": layer.digest,
                "ok": not layer.findings.count,
                "broken": layer.findings.count,
                "checked": asdict(layer.counts),
                "findings": _findings_as_json(layer.findings),
                "notes": layer.notes,
            }
            for layer in report.layers
        ],
    }


def _findings_as_json(findings: Findings) -> list[dict[str, Any]]:
    return [
        {"kind": str(finding.kind), **finding.where, "message": finding.message}
        for finding in findings.listed
    ]
