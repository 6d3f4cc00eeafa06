"""Pull an image into containerd so that its EROFS layers are lazy.

For ctr, which tells a snapshotter of containerd 1.x nothing of the image. Other layers are
fetched, and unpacked by containerd. Images with the same layers share them.

Example:
  lazyfs ctr-pull registry.example/app:1.2
  lazyfs ctr-pull --namespace k8s.io registry.example/app:1.2    for pods, by containerd 1.x
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from lazyfs.cli.options import access_of, add_access, add_platform
from lazyfs.cli.snapshotter import check_extra
from lazyfs.snapshotter.folders import CONTAINERD


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help="an image in a registry")
    parser.add_argument(
        "--containerd",
        metavar="SOCKET",
        type=Path,
        default=CONTAINERD,
        help="where containerd listens (default: %(default)s)",
    )
    parser.add_argument("--namespace", default="default", help="of containerd (%(default)s)")
    parser.add_argument("--snapshotter", default="lazyfs", help="its name there (%(default)s)")
    add_platform(parser)
    add_access(parser)
    parser.add_argument("--quiet", action="store_true", help="do not tell of each layer")
    parser.add_argument("--json", action="store_true", help="print what came as JSON")


def run(args: argparse.Namespace) -> int:
    """Pull the image."""
    check_extra()
    import trio

    from lazyfs.snapshotter.client import Containerd
    from lazyfs.snapshotter.pull import pull

    def show(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr)

    containerd = Containerd(args.containerd.absolute(), args.namespace)
    try:
        pulled = trio.run(
            pull, args.image, access_of(args), args.platform, containerd, args.snapshotter, show
        )
    finally:
        containerd.close()
    if args.json:
        print(json.dumps(asdict(pulled)))
    else:
        print(f"{pulled.name}@{pulled.digest}")
    return 0
