"""Make a seekable EROFS image from a container image.

Tar layers become EROFS images in seekable zstd blobs that "lazyfs mount" reads piece by piece,
and that containerd 2.3 and later can pull (with --layout erofs-spec: other tools that know the
EROFS image specification). EROFS layers are taken as they are, and seekable ones left alone,
unless they have another layout or --chunk-size. The same input and options give the same digests,
whatever --jobs is.

Temporary files go to TMPDIR: up to four layers at a time, decompressed and compressed.

Examples:
  lazyfs convert docker.io/library/debian:12 localhost:5000/debian:12-lazy
  lazyfs convert docker-archive:app.tar oci:images/app:1.2
  lazyfs convert app:1.2 registry.example/app:1.2 --platform linux/amd64
  lazyfs convert oci:in:app oci-archive:out.tar:app --chunk-size 1MiB --compression-level 19
  lazyfs convert erofs:meta.erofs,device=data.img oci:out:app --layout erofs-spec
"""

import argparse
import json
import logging
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from lazyfs.cli.interrupts import run_until_interrupted
from lazyfs.cli.options import access_of, add_hosts_dir
from lazyfs.cli.progress import open_progress
from lazyfs.cli.values import format_size, seconds, size
from lazyfs.convert.erofsfiles import open_erofs_files
from lazyfs.convert.hot import FrontLayout
from lazyfs.convert.ledger import Ledger
from lazyfs.convert.options import DEFAULT_BLOCK_BYTES, DEFAULT_CHUNK_BYTES, ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult, ImageResult, LayerResult
from lazyfs.errors import ConversionError, ProfileError
from lazyfs.localname import PREFIX, parse_local_image
from lazyfs.mount.options import default_cache_dir
from lazyfs.profile.document import (
    BLOCK_BYTES,
    Profile,
    encode_profile,
)
from lazyfs.profilefile import read_profile
from lazyfs.seekable.frames import DEFAULT_LEVEL
from lazyfs.seekable.mediatypes import Layout
from registry.errors import InvalidReferenceError
from registry.interfaces import DEFAULT_TIMEOUT_S, Access, ImageSource
from registry.platforms import Platform, host_platform, parse_platform
from registry.transports import open_destination, open_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", metavar="SRC", help='see "lazyfs --help" for how to name one')
    parser.add_argument("destination", metavar="DST", help="where the result goes")
    parser.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        default=Layout.CONTAINERD.value,
        help="how the blobs are laid out and described: as in containerd's pull request 12764, "
        "or by the EROFS image specification (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk-size",
        type=size,
        metavar="SIZE",
        help="image bytes per zstd frame: what a read fetches at least (default: 512KiB). If "
        "given, layers that are seekable in other chunks are cut anew",
    )
    parser.add_argument(
        "--file-aligned",
        action="store_true",
        help="begin chunks with files, so that images share the chunks of the same files "
        "(--layout erofs-spec)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="put what a start reads in front of each layer: FILE is a startup profile of the same "
        'image, as "lazyfs profile record" writes it',
    )
    parser.add_argument(
        "--profile-out",
        type=Path,
        metavar="FILE",
        help="write the new image's profile, which is pushed beside it, to a file as well (with "
        "--profile; one platform)",
    )
    parser.add_argument(
        "--compression-level",
        dest="level",
        type=int,
        metavar="N",
        default=DEFAULT_LEVEL,
        help=f"zstd level, -7 to 22 (default: {DEFAULT_LEVEL})",
    )
    parser.add_argument("--level", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="threads that compress (default: one per processor)",
    )
    parser.add_argument(
        "--no-verity",
        action="store_true",
        help="leave the dm-verity tree out: blobs shrink by about 1/64 of the image, and what "
        "lies in a cache is proven by decompressing it again",
    )
    parser.add_argument(
        "--verity-block-size",
        type=size,
        metavar="SIZE",
        default=DEFAULT_BLOCK_BYTES,
        help="bytes per data and hash block (default: 4096)",
    )
    parser.add_argument(
        "--platform",
        action="append",
        type=_platform,
        metavar="OS/ARCH[/VARIANT]",
        default=[],
        help="take only this image of an index; may be repeated. One gives a single image, "
        "several an index (default: all)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        default=default_cache_dir(),
        help="where it is noted what became of which layer, so that a layer that the destination "
        "still has is not converted again (default: %(default)s)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="convert every layer, and note nothing"
    )
    parser.add_argument(
        "--plain-http", action="store_true", help="speak HTTP without TLS to any registry"
    )
    add_hosts_dir(parser)
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="TIME",
        default=DEFAULT_TIMEOUT_S,
        help="how long to try to get an answer of a registry; 0: for ever (default: 30s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Convert; return the exit status."""
    options = _options(args)
    if args.destination.startswith(PREFIX):
        args.usage_error(f"{args.destination}: local EROFS images can only be read")
    if args.profile_out is not None and args.profile is None:
        args.usage_error("--profile-out needs --profile")
    if args.quiet:
        logging.getLogger().setLevel(logging.ERROR)
    access = access_of(args)
    ledger = None if args.no_cache else Ledger(args.cache_dir.absolute() / "conversions")

    async def convert() -> ConversionResult:
        with open_progress(quiet=args.quiet) as progress:
            async with (
                _open_source(args, access, options) as source,
                open_destination(args.destination, access) as destination,
            ):
                return await convert_image(source, destination, options, progress, ledger)

    result = run_until_interrupted(convert)
    if args.profile_out is not None:
        _write_profile(args.profile_out, result)
    if args.json:
        print(json.dumps(_as_json(result), indent=2))
    elif not args.quiet:
        _print_summary(result)
    return 0


def _open_source(
    args: argparse.Namespace, access: Access, options: ConvertOptions
) -> AbstractAsyncContextManager[ImageSource]:
    local = parse_local_image(args.source)
    if local is None:
        return open_source(args.source, access)
    platform = options.platforms[0] if options.platforms else host_platform()
    return open_erofs_files(args.source, local, platform, options.chunk_size_bytes)


def _options(args: argparse.Namespace) -> ConvertOptions:
    try:
        return ConvertOptions(
            layout=Layout(args.layout),
            chunk_size_bytes=DEFAULT_CHUNK_BYTES if args.chunk_size is None else args.chunk_size,
            rechunk=args.chunk_size is not None,
            file_aligned=args.file_aligned,
            level=args.level,
            jobs=args.jobs,
            verity=not args.no_verity,
            verity_block_size_bytes=args.verity_block_size,
            platforms=tuple(args.platform),
            profile=_profile_in(args.profile) if args.profile is not None else None,
        )
    except ConversionError as error:
        args.usage_error(str(error))
        raise AssertionError("a usage error ends the process") from error


def _profile_in(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        ProfileError: there is none that can be read.
    """
    try:
        return read_profile(path)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from error


def _write_profile(path: Path, result: ConversionResult) -> None:
    profiles = [image.profile for image in result.images if image.profile is not None]
    if len(profiles) != 1:
        raise ConversionError(f"--profile-out: {len(profiles)} images; choose one by --platform")
    try:
        path.write_bytes(encode_profile(profiles[0]))
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from error


def _platform(text: str) -> Platform:
    try:
        return parse_platform(text)
    except InvalidReferenceError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _print_summary(result: ConversionResult) -> None:
    for image in result.images:
        print(f"{image.platform}  {image.descriptor.digest}")
        for number, layer in enumerate(image.layers, 1):
            print(f"  layer {number}: {_describe(layer)}")
            print(f"    {layer.descriptor.digest}")
        if image.profile is not None:
            print(f"  in front: {_describe_front(image)}")
    for note in result.notes:
        print(f"note: {note}")
    print(f"{result.destination}  {result.descriptor.digest}")


def _describe(layer: LayerResult) -> str:
    if layer.image_size_bytes is None:
        return f"{layer.outcome}, {format_size(layer.descriptor.size_bytes)}"
    return (
        f"{layer.outcome}, {format_size(layer.source.size_bytes)} -> image "
        f"{format_size(layer.image_size_bytes)} -> blob {format_size(layer.descriptor.size_bytes)} "
        f"in {layer.chunks} chunks"
    )


def _describe_front(image: ImageResult) -> str:
    fronts = [layer.front for layer in image.layers if layer.front is not None]
    data = format_size(sum(front.data.length for front in fronts) * BLOCK_BYTES)
    missing = f"; {image.missing_paths} of its paths are not here" if image.missing_paths else ""
    return f"{data} of file data by the profile{missing}"


def _as_json(result: ConversionResult) -> dict[str, Any]:
    return {
        "source": result.source,
        "destination": result.destination,
        "digest": str(result.descriptor.digest),
        "mediaType": result.descriptor.media_type,
        "images": [
            {
                "platform": image.platform,
                "sourceDigest": str(image.source),
                "digest": str(image.descriptor.digest),
                "layers": [_layer_as_json(layer) for layer in image.layers],
                **({"missingPaths": image.missing_paths} if image.profile is not None else {}),
            }
            for image in result.images
        ],
        "notes": list(result.notes),
    }


def _layer_as_json(layer: LayerResult) -> dict[str, Any]:
    return {
        "outcome": str(layer.outcome),
        "sourceDigest": str(layer.source.digest),
        "sourceSize": layer.source.size_bytes,
        "digest": str(layer.descriptor.digest),
        "size": layer.descriptor.size_bytes,
        "imageSize": layer.image_size_bytes,
        "diffID": str(layer.diff_id),
        "chunks": layer.chunks,
        "annotations": dict(layer.descriptor.annotations),
        **({"front": _front_as_json(layer.front)} if layer.front is not None else {}),
    }


def _front_as_json(front: FrontLayout) -> dict[str, int]:
    return {
        "offset": front.data.first * BLOCK_BYTES,
        "size": front.data.length * BLOCK_BYTES,
        "metadataSize": sum(span.length for span in front.metadata) * BLOCK_BYTES,
    }
