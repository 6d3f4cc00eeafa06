"""Options that several commands share, and what they mean."""

import argparse
import os
from pathlib import Path

from lazyfs.cli.values import seconds
from registry.interfaces import DEFAULT_TIMEOUT_S, Access

IMAGE_HELP = 'see "lazyfs --help" for how to name one'


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Declare which image of an index is meant."""
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="which image of an index (default: this machine's)",
    )


def add_access(parser: argparse.ArgumentParser) -> None:
    """Declare how a registry is reached."""
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        help="how long to try to get an answer of a registry; 0: for ever "
        f"(default: {DEFAULT_TIMEOUT_S:g}s)",
    )
    parser.add_argument(
        "--plain-http",
        action="store_true",
        help="speak HTTP without TLS to any registry (loopback names may use it anyway)",
    )
    add_hosts_dir(parser)


def add_hosts_dir(parser: argparse.ArgumentParser) -> None:
    """Declare where mirrors and certificates are configured."""
    parser.add_argument(
        "--hosts-dir",
        metavar="DIR",
        type=Path,
        help="folder with HOST/hosts.toml as containerd has it: mirrors, certificates, headers "
        "(default: certs.d in ~/.config/lazyfs, /etc/lazyfs, /etc/containerd, /etc/docker)",
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Declare how many threads work."""
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="threads that check and decompress (default: one per processor)",
    )


def access_of(args: argparse.Namespace) -> Access:
    """How to reach the registry, by the options of ``add_access``."""
    folders = None if args.hosts_dir is None else (args.hosts_dir.absolute(),)
    return Access(plain_http=args.plain_http, timeout_s=args.timeout, hosts_dirs=folders)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"not a positive number: {text!r}")
    return number
