"""Show what an image is made of: manifest, layers, chunk tables, verity, superblocks, tree.

Reads a few kilobytes of a remote image. --tree reads the metadata of all layers, through the
same cache as a mount.

Examples:
  lazyfs inspect localhost:5000/app:1.2
  lazyfs inspect oci:images/app:1.2 --json | jq '.layers[].chunk_table'
  lazyfs inspect oci:images/app:1.2 --tree
  lazyfs inspect erofs:layer.erofs
"""

import argparse
import json
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lazyfs.cli.interrupts import run_until_interrupted
from lazyfs.cli.options import IMAGE_HELP, access_of, add_access, add_platform
from lazyfs.cli.values import format_size, printable
from lazyfs.inspect import describe, describe_local, layer_of, walk
from lazyfs.localname import parse_local_image
from lazyfs.model import Attributes, NodeId
from lazyfs.mount.assemble import open_image
from lazyfs.mount.options import MountOptions, default_cache_dir

Document = Mapping[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--chunks", action="store_true", help="list every chunk: place, size, digest"
    )
    parser.add_argument(
        "--tree",
        action="store_true",
        help="list every file of the merged tree with the layer (1 is the bottom one) it is from",
    )
    add_platform(parser)
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        type=Path,
        default=default_cache_dir(),
        help="where --tree keeps what it fetches (default: %(default)s)",
    )
    add_access(parser)


def run(args: argparse.Namespace) -> int:
    """Inspect the image."""
    document = run_until_interrupted(_describe, args)
    tree = run_until_interrupted(_tree, args) if args.tree else None
    if args.json:
        print(json.dumps(document if tree is None else {**document, "tree": tree}, indent=2))
        return 0
    for line in _lines(document):
        print(line)
    for entry in tree or ():
        print(_tree_line(entry))
    return 0


async def _describe(args: argparse.Namespace) -> Document:
    local = parse_local_image(args.image)
    if local is not None:
        return await describe_local(args.image, local[0])
    return await describe(args.image, access_of(args), args.platform, chunks=args.chunks)


async def _tree(args: argparse.Namespace) -> list[Document]:
    options = MountOptions(
        cache_dir=args.cache_dir.absolute(),
        platform=args.platform,
        timeout_s=args.timeout,
        plain_http=args.plain_http,
        hosts_dir=args.hosts_dir and args.hosts_dir.absolute(),
    )
    async with open_image(args.image, options) as opened:
        return [_entry(*found) async for found in walk(opened.tree)]


def _entry(path: bytes, node: NodeId, attributes: Attributes) -> Document:
    return {
        "path": "/" + path.decode("utf-8", "surrogateescape"),
        "mode": stat.filemode(attributes.mode),
        "uid": attributes.uid,
        "gid": attributes.gid,
        "size": attributes.size_bytes,
        "mtime": attributes.mtime_s + attributes.mtime_ns / 1e9,
        "layer": layer_of(node),
    }


def _tree_line(entry: Document) -> str:
    path = str(entry["path"]).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return (
        f"{entry['layer']:>3} {entry['mode']} {entry['uid']:>5} {entry['gid']:>5} "
        f"{entry['size']:>12} {printable(path)}"
    )


def _lines(document: Document) -> list[str]:
    """The document for a person."""
    lines = [f"image     {document['image']}"]
    if "digest" in document:
        lines += [
            f"manifest  {document['digest']}",
            f"          {document['media_type']}",
        ]
    for index in _objects(document.get("indexes")):
        lines.append(f"index     {index['digest']}")
        lines += [
            f"          {entry['digest']} {entry['platform'] or ''}"
            for entry in _objects(index.get("manifests"))
        ]
    if document.get("platform"):
        lines.append(f"platform  {document['platform']}")
    lines += [f"annotated {text}" for text in _annotations(document)]
    config = document.get("config")
    if isinstance(config, Mapping):
        lines += [f"config    {key}: {_plain(value)}" for key, value in config.items() if value]
    for layer in _objects(document.get("layers")):
        lines += ["", *_layer_lines(layer)]
    if "fetched_bytes" in document:
        lines += ["", f"({_size(document['fetched_bytes'])} of the layers fetched for this)"]
    return lines


def _layer_lines(layer: Document) -> list[str]:
    lines = [f"layer {layer['number']:<3} {layer.get('digest', '')}".rstrip()]
    lines.append(
        f"  size        {_size(layer['size_bytes'])} {layer.get('media_type', '')}".rstrip()
    )
    if "diff_id" in layer:
        lines.append(f"  diff id     {layer['diff_id']}")
    lines += [f"  annotated   {text}" for text in _annotations(layer)]
    table, verity, superblock = (layer.get(key) for key in ("chunk_table", "verity", "superblock"))
    if isinstance(table, Mapping):
        lines.append(
            f"  chunks      {table['chunks']} of {_size(table['chunk_bytes'])}: "
            f"{_size(table['image_bytes'])} in {_size(table['compressed_bytes'])} "
            f"(ratio {table['ratio']}), frames by {table['frame_digests'] or 'no digest'}"
        )
    if isinstance(verity, Mapping):
        lines.append(
            f"  dm-verity   {verity['algorithm']}, {verity['data_blocks']} blocks of "
            f"{verity['data_block_bytes']} bytes, payload {_size(verity['payload_bytes'])}"
        )
        lines.append(f"  root        {verity['root_digest']}")
    elif isinstance(table, Mapping):
        lines.append("  dm-verity   none")
    if isinstance(superblock, Mapping):
        lines += _superblock_lines(superblock)
    if "problem" in layer:
        lines.append(f"  problem     {layer['problem']}")
    lines += [
        f"  chunk {chunk['index']:<6} image {chunk['image_offset']}+{chunk['image_bytes']} "
        f"blob {chunk['blob_offset']}+{chunk['frame_bytes']} {chunk['digest']}"
        for chunk in _objects(layer.get("chunks"))
    ]
    return lines


def _superblock_lines(superblock: Document) -> list[str]:
    built = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(_number(superblock["build_time"])))
    proof = "" if superblock["proven"] else " (unproven)"
    blocks = f"{superblock['blocks']} blocks of {superblock['block_bytes']} bytes"
    features = [*_words(superblock["compat"]), *_words(superblock["incompat"])]
    return [
        f"  erofs       {superblock['inodes']} inodes, {blocks}, uuid {superblock['uuid']}{proof}",
        f"  features    {', '.join(features)}",
        f"  built       {built}",
    ]


def _annotations(document: Document) -> list[str]:
    found = document.get("annotations")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return [printable(f"{key}={value}") for key, value in pairs]


def _objects(value: object) -> Sequence[Document]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _words(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _plain(value: object) -> str:
    return " ".join(_words(value)) if isinstance(value, list) else str(value)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _size(value: object) -> str:
    return format_size(_number(value))
