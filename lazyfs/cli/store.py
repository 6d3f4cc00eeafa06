"""Serve layers of images as files in a folder that stock containerd (2.4) takes for a cache.

The folder has a file <algorithm>/<first two hex>/<diff ID hex>.erofs for each EROFS layer of the
store's images: a lazy, verified image, which containerd's EROFS snapshotter lets the kernel mount
(layer_content_caches in its configuration). It never downloads such a layer.

Which images are in the store is kept in the cache folder, so it is the same after a restart, and
no registry is needed for that. More can be added while it is mounted. "lazyfs umount", "status",
"restart" and "doctor" know a store as they know a mount.

Examples:
  lazyfs store /var/lib/lazyfs/store example.org/app:1.2
  lazyfs store /var/lib/lazyfs/store --images /etc/lazyfs/images   a name on each line
  lazyfs store add example.org/other:3                    to the store that is mounted
  lazyfs store add example.org/app:1.2-lazy --named-like example.org/app:1.2
                        for who pulls the tar image: its layers, converted, under its diff IDs
  lazyfs store remove example.org/other:3
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from lazyfs.cli.mount import add_fetching, add_seeing, fetching_options, serve
from lazyfs.cli.options import add_hosts_dir, add_platform
from lazyfs.errors import MountError
from lazyfs.localname import STORE_SCHEME
from lazyfs.mount.census import census
from lazyfs.mount.mountpoint import resolve
from lazyfs.mount.options import MountOptions
from lazyfs.mount.request import absolute_image

ADD, REMOVE = "add", "remove"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "what", metavar="DIR|add|remove", help="where to mount the store, or what to change"
    )
    parser.add_argument("image", metavar="IMAGE", nargs="*", help="images, by their names")
    parser.add_argument(
        "--images", metavar="FILE", type=Path, help="more images: a name on each line, # for notes"
    )
    parser.add_argument(
        "--named-like",
        metavar="IMAGE",
        help="the image that this one was converted from: its diff IDs name the files",
    )
    parser.add_argument(
        "--at", metavar="DIR", help="add, remove: which store (default: the only one)"
    )
    parser.add_argument("--mkdir", action="store_true", help="create DIR if it does not exist")
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="serve the store in this process; Ctrl-C or SIGTERM unmounts",
    )
    add_platform(parser)
    add_fetching(parser.add_argument_group("fetching and keeping"))
    add_hosts_dir(parser)
    add_seeing(parser)
    parser.add_argument("--quiet", action="store_true", help="no warnings, only errors")


def run(args: argparse.Namespace) -> int:
    """Mount the store, or change it."""
    options = fetching_options(args)
    names = [absolute_image(name, Path.cwd()) for name in _names(args)]
    if args.named_like is not None and len(names) != 1:
        raise MountError("--named-like goes with exactly one image")
    if args.what in (ADD, REMOVE):
        if not names:
            raise MountError(f"no image to {args.what}")
        directory, options = _mounted_store(args.at, options)
        if args.what == REMOVE:
            _remove(directory, names, options)
        else:
            _add(directory, names, options, args)
        return 0
    args.directory = args.what
    directory = resolve(args.directory)
    if names:
        _add(directory, names, options, args)
    return serve(STORE_SCHEME + directory, options, args)


def _names(args: argparse.Namespace) -> list[str]:
    names = list(args.image)
    if args.images is not None:
        lines = (line.partition("#")[0].strip() for line in args.images.read_text().splitlines())
        names += [line for line in lines if line]
    return names


def _mounted_store(directory: str | None, options: MountOptions) -> tuple[str, MountOptions]:
    """The store that is meant, and the options with its cache folder.

    Raises:
        MountError: there is none, or it is not clear which.
    """
    stores = [
        document
        for document in census(directory)
        if str(document["image"]).startswith(STORE_SCHEME) and document["state"] != "dead"
    ]
    if not stores:
        raise MountError("no store is mounted" if directory is None else f"{directory} is none")
    if len(stores) > 1:
        raise MountError("several stores are mounted: say which with --at")
    [document] = stores
    cache = document.get("cache")
    if isinstance(cache, dict) and cache.get("path"):
        options = replace(options, cache_dir=Path(cache["path"]))
    return str(document["mountpoint"]), options


def _add(directory: str, names: list[str], options: MountOptions, args: argparse.Namespace) -> None:
    """Find out about images and note them; all of them or none."""
    import trio

    from lazyfs.mount.storefolder import add_images

    added = trio.run(add_images, directory, names, args.named_like, options)
    for stored, lazy in added:
        if args.quiet:
            continue
        count = sum(lazy)
        rest = f"; {len(lazy) - count} others are containerd's to unpack" if not all(lazy) else ""
        print(f"{stored.name}: {count} layers{rest}", file=sys.stderr)


def _remove(directory: str, names: list[str], options: MountOptions) -> None:
    from lazyfs.mount.storefolder import store_documents

    with store_documents(options, directory) as (index, _):
        for name in names:
            if not index.remove(name):
                raise MountError(f"{name} is not in the store on {directory}")
