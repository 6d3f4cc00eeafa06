"""Let another daemon serve a mount, while it is in use.

After an upgrade of lazyfs this puts the new version in charge. Open files, working directories and
mappings stay as they are; who reads meanwhile waits for a moment. The image stays exactly the one
that was mounted, also if its tag means another one by now.

Example:
  lazyfs restart /mnt
"""

import argparse

from lazyfs.mount.restart import restart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", metavar="DIR", nargs="+", help="where an image is mounted")


def run(args: argparse.Namespace) -> int:
    """Restart the daemons."""
    for directory in args.directory:
        restart(directory)
    return 0
