"""Show what is mounted, how much was fetched for it, and what went wrong.

A layer is lazy if its parts can be fetched one by one; "why" says why it is or is not. With
--json the answer is a list with one object for each mount, also if DIR is given.

Examples:
  lazyfs status
  lazyfs status /mnt
  lazyfs status /mnt --json | jq '.[0].totals'
"""

import argparse
import json

from lazyfs.mount.census import census


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="only this mount (default: all of this user)"
    )
    parser.add_argument("--json", action="store_true", help="a list of JSON objects")


def run(args: argparse.Namespace) -> int:
    """Show the status."""
    documents = census(args.directory)
    if args.json:
        print(json.dumps(documents, indent=2))
    elif documents:
        from lazyfs.cli.statustables import show  # only now: tables take longer than all the rest

        show(documents)
    return 0
