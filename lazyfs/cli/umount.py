"""Take a mount down and wait until its daemon has ended.

A mount that is in use stays, and the message says by whom. What a daemon that died has left
behind goes too.

Examples:
  lazyfs umount /mnt
  lazyfs umount --lazy /mnt     off the directory now; who still uses it may finish
"""

import argparse

from lazyfs.mount.changes import sweep_changes
from lazyfs.mount.unmount import unmount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="where an image is mounted")
    parser.add_argument("-l", "--lazy", action="store_true", help="detach it even if it is in use")


def run(args: argparse.Namespace) -> int:
    """Unmount."""
    try:
        for directory in args.directory:
            unmount(directory, lazy=args.lazy)
    finally:
        sweep_changes()
    return 0
