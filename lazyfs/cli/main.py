"""The ``lazyfs`` command: finds the command's module, runs it, maps errors to exit status.

A command is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int``.
Only the module of the command that was asked for is imported: start-up time is part of
mount time.

Exit status: 0 done, 1 the thing asked for failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import gc
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from lazyfs import __version__
from lazyfs.errors import LazyfsError, innermost

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class Command(NamedTuple):
    """A row of the table of commands."""

    name: str
    module: str
    summary: str
    bare: tuple[str, ...] = ()
    """Options whose value only ever follows "=": alone they have an empty one."""


COMMANDS = (
    Command("convert", "lazyfs.cli.convert", "make a seekable EROFS image from a container image"),
    Command("mount", "lazyfs.cli.mount", "mount an image on a directory", ("--rw",)),
    Command("run", "lazyfs.cli.run", "run a container on an image that is fetched lazily"),
    Command("store", "lazyfs.cli.store", "serve the layers of images as files, for containerd"),
    Command("snapshotter", "lazyfs.cli.snapshotter", "serve containerd as a lazy snapshotter"),
    Command("ctr-pull", "lazyfs.cli.ctrpull", "pull an image into containerd, lazily"),
    Command("umount", "lazyfs.cli.umount", "take a mount down"),
    Command("restart", "lazyfs.cli.restart", "let another daemon serve a mount that is in use"),
    Command("status", "lazyfs.cli.status", "show what is mounted and what it has fetched"),
    Command("explain", "lazyfs.cli.explain", "tell where a file of a mount comes from, and how"),
    Command("doctor", "lazyfs.cli.doctor", "look for what is wrong on this machine"),
    Command("inspect", "lazyfs.cli.inspect", "show an image's layers, tables and tree"),
    Command("profile", "lazyfs.cli.profile", "note what a start reads, so that the next is faster"),
    Command("unpack", "lazyfs.cli.unpack", "unpack the layers of an image into files"),
    Command("cache", "lazyfs.cli.cache", "show, shrink, empty and check what is cached"),
    Command("verify", "lazyfs.cli.verify", "check all of an image and say what is broken"),
)

EPILOG = """\
An image is named as skopeo names it; docker:// may be left out:
  HOST[:PORT]/REPO[:TAG][@DIGEST]   in a registry
  oci:DIR[:TAG]                     an OCI layout folder
  oci-archive:FILE[:TAG]            the same in a tar file
  docker-archive:FILE               as "docker save" writes it (source only)
  erofs:FILE[,device=FILE...]       a local EROFS image (not to be written to)

Example:
  lazyfs convert docker-archive:app.tar oci:app:latest
  lazyfs mount oci:app:latest /mnt && ls /mnt && lazyfs umount /mnt

"lazyfs COMMAND --help" tells more about a command.
"""


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lazyfs",
        description="Mount container images straight from a registry, fetching and verifying only "
        "what is read.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lazyfs {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        if command.name == wanted:
            gc.disable()  # of what is imported nothing is garbage
            module = importlib.import_module(command.module)
            gc.enable()
            sub = commands.add_parser(
                command.name,
                help=command.summary,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            sub.add_argument(
                "--debug", action="store_true", help="log much, and show tracebacks of errors"
            )
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
        else:
            commands.add_parser(command.name, help=command.summary)
    return parser


def _expected_errors() -> tuple[type[Exception], ...]:
    """What is a failure of the thing asked for; anything else is a bug."""
    from cache.errors import CacheError
    from registry.errors import RegistryError

    return (LazyfsError, RegistryError, CacheError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    wanted = next((word for word in words if not word.startswith("-")), None)
    bare = next((command.bare for command in COMMANDS if command.name == wanted), ())
    words = [f"{word}=" if word in bare else word for word in words]
    try:
        # In here, for a Ctrl-C may come while the command's module is still being imported.
        args = _parser(wanted).parse_args(words)
        _log_to_stderr(debug=args.debug)
        return _run(args)
    except KeyboardInterrupt:
        print("lazyfs: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (as with "| head"): nobody is left to tell.
        sys.stderr.close()
        return EXIT_FAILED


def _log_to_stderr(*, debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("httpcore", "httpx", "hpack"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _run(args: argparse.Namespace) -> int:
    """Run the chosen command; an error becomes one line.

    Raises:
        KeyboardInterrupt, BrokenPipeError.
    """
    try:
        return int(args.run(args))
    except BrokenPipeError:
        raise
    except (Exception, BaseExceptionGroup) as error:
        failure = innermost(error)
        if args.debug:
            traceback.print_exception(error)
        if isinstance(failure, KeyboardInterrupt | SystemExit):  # the latter: wrong usage
            raise failure from error
        if isinstance(failure, _expected_errors()):
            print(f"lazyfs {args.command}: {failure}", file=sys.stderr)
        else:
            print(
                f"lazyfs {args.command}: internal error: {type(failure).__name__}: {failure} "
                "(--debug shows where)",
                file=sys.stderr,
            )
        return EXIT_FAILED
