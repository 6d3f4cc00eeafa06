"""Startup profiles: which parts of an image a start reads, in order of first use.

  record  run a command in a container on the image, or take a live mount, and note what is read
  merge   put recordings of the same image together: what all of them read comes first
  show    tell what is in a profile, of a file or of an image that has one
  push    put a profile beside its image in the registry, where mounts find it

A mount that has a profile fetches in a few large requests what it names, ahead of the readers;
a conversion puts it in front of the image.

Examples:
  lazyfs profile record example.org/app:1.2 -- python3 -c 'import app'
  lazyfs profile record example.org/web:1.2 --for 10s -o web.profile
  lazyfs profile record /mnt -o app.profile                  what was read in a live mount
  lazyfs profile merge one.profile two.profile -o app.profile
  lazyfs profile show app.profile
  lazyfs profile push app.profile example.org/app:1.2
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lazyfs.cli import run as cli_run
from lazyfs.cli.interrupts import run_until_interrupted
from lazyfs.cli.options import IMAGE_HELP, access_of, add_access, add_platform
from lazyfs.cli.values import format_size, printable, seconds
from lazyfs.documents import Documents, KeptSource
from lazyfs.errors import ProfileError, RunError
from lazyfs.mount.mountpoint import resolve
from lazyfs.mount.runtime import KnownMount, known_mounts
from lazyfs.profile.document import MAX_PROFILE_BYTES, Profile, decode_profile, encode_profile
from lazyfs.profile.merge import merge
from lazyfs.profilefile import read_profile
from lazyfs.pushedprofile import (
    check_profile,
    fetch_profile,
    find_profile,
    push_profile,
    time_of_push,
)
from lazyfs.record import Reads, ask_for_reads, with_files
from lazyfs.resolve import resolve_image
from lazyfs.run.container import Container
from lazyfs.run.process import Ending
from registry.transports import open_destination, open_source

STDOUT = Path("-")
SHOWN_FILES = 20
"""Files that ``show`` lists; --json has them all."""

PLAIN_WIDTH = 200
"""Columns where the output is not a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    recording = actions.add_parser(
        "record",
        help="note what a command or a mount reads",
        description="Run a command in a container on IMAGE, as lazyfs run does, and note what is "
        "read of the image; or note what was read in a live mount so far. Ctrl-C ends the command, "
        "and what it read is kept.",
        epilog="IMAGE may be the directory of a live mount. If options stand behind IMAGE, the "
        "command stands behind --.",
    )
    _add_recording(recording)
    merging = actions.add_parser("merge", help="put profiles of one image together")
    merging.add_argument("profiles", nargs="+", type=Path, metavar="FILE", help="profiles")
    showing = actions.add_parser("show", help="tell what is in a profile")
    showing.add_argument(
        "profile", metavar="FILE|IMAGE", help="the profile, or an image that has one; - is stdin"
    )
    showing.add_argument("--json", action="store_true", help="one JSON object, with all files")
    pushing = actions.add_parser(
        "push",
        help="put a profile beside its image",
        description="Push a profile as an OCI referrer of its image, whose digest stays as it is. "
        "Mounts find it there; the newest one counts. A registry without lists of referrers gets "
        "a tag in their place.",
    )
    pushing.add_argument("profile", type=Path, metavar="FILE", help="the profile; - is stdin")
    pushing.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    for action in (showing, pushing):
        add_platform(action)
        add_access(action)
    merging.add_argument(
        *("-o", "--output"), type=Path, metavar="FILE", required=True, help="the merged profile"
    )


def _add_recording(parser: argparse.ArgumentParser) -> None:
    """Declare what ``record`` has: its own options, and all of ``lazyfs run``."""
    cli_run.add_arguments(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        metavar="FILE",
        help="where to write the profile (default: NAME.profile, after the image); - is stdout",
    )
    parser.add_argument(
        "--for",
        dest="for_s",
        metavar="TIME",
        type=seconds,
        default=0.0,
        help="end the command after this time, such as 10s: for servers",
    )


def run(args: argparse.Namespace) -> int:
    """Do what is asked for; return the exit status."""
    if args.action == "record":
        return _record(args)
    if args.action == "merge":
        merged = merge([_read(path) for path in args.profiles])
        _write(merged, args.output)
        return 0
    if args.action == "push":
        profile = _read(args.profile)
        print(run_until_interrupted(_push, args, profile))
        return 0
    path = Path(args.profile)
    if path == STDOUT or path.is_file():
        profile = _read(path)
    else:
        profile = run_until_interrupted(_pushed, args)
    if args.json:
        print(json.dumps(_document(profile), indent=2))
    else:
        _show(profile)
    return 0


def _record(args: argparse.Namespace) -> int:
    args = _container_arguments(args)
    live = Path(args.image).is_dir()
    output = args.output or Path(_file_name(resolve(args.image) if live else args.image))
    if not output.parent.is_dir():  # said now, not after the command has run
        raise ProfileError(f"{output.parent} is no directory")
    if live:
        if args.command_words:
            raise ProfileError("a command is run on an image; a live mount is only asked")
        reads = ask_for_reads(_mount_at(resolve(args.image)))
    elif os.geteuid() != 0:
        return cli_run.enter_user_namespace()
    else:
        reads = _run_and_ask(args)
    if not reads.complete:
        print(f"lazyfs profile: {reads.why_not}", file=sys.stderr)
    profile = run_until_interrupted(with_files, reads)
    _write(profile, output)
    return 0


async def _push(args: argparse.Namespace, profile: Profile) -> str:
    """Push a profile; the digest of what refers to the image.

    Raises:
        ProfileError: it is of another image, or cannot be put beside this one.
        LazyfsError, RegistryError: the image cannot be had, or the registry does not take it.
    """
    access = access_of(args)
    async with open_source(args.image, access) as source:
        resolved = await resolve_image(source, args.platform)
    check_profile(profile, resolved)
    async with open_destination(args.image, access) as destination:
        digest = await push_profile(destination, profile, resolved.descriptor, time_of_push())
    return str(digest)


async def _pushed(args: argparse.Namespace) -> Profile:
    """The profile that mounts of an image find.

    Raises:
        ProfileError: there is none.
        LazyfsError, RegistryError: nobody can say.
    """
    async with open_source(args.profile, access_of(args)) as source:
        kept = KeptSource(source, Documents(None))
        resolved = await resolve_image(kept, args.platform)
        blob = await find_profile(kept, resolved.descriptor.digest)
        if blob is None:
            raise ProfileError(f"{args.profile} has no profile, and is no file either")
        return await fetch_profile(kept, blob)


def _run_and_ask(args: argparse.Namespace) -> Reads:
    """Run the command in a container, and ask the daemon of its root what was read.

    Raises:
        RunError: the command was not run.
        ProfileError, MountError: the daemon does not tell.
    """
    watch = _Watch(args.for_s)
    status = cli_run.run_container(args, watch)
    if watch.reads is None:
        raise RunError(f"{args.image}: the command was not run")
    if status:
        why = "was ended, with" if watch.end is not None and watch.end.begun else "ended with"
        print(f"lazyfs profile: the command {why} status {status}", file=sys.stderr)
    return watch.reads


class _Watch:
    """Sees to it that a command ends, and asks what it has read."""

    def __init__(self, for_s: float) -> None:
        self.end: Ending | None = None
        self.reads: Reads | None = None
        self._for_s = for_s

    def ending(self, kill: Callable[[], object]) -> Ending:
        """Ctrl-C, or the time, ends it for certain."""
        self.end = Ending(kill, self._for_s)
        return self.end

    def ended(self, container: Container) -> None:
        """Ask the daemon of its root."""
        self.reads = ask_for_reads(_mount_at(os.fspath(container.root)))


def _container_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """What ``lazyfs run`` is told; options may stand on both sides of the image."""
    words = args.command_words
    if "--" not in words and not (words and words[0].startswith("-")):
        return args
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="lazyfs profile record")
    _add_recording(parser)
    return parser.parse_args([*words[:at], args.image, *words[at + 1 :]], args)


def _mount_at(directory: str) -> KnownMount:
    """The live mount on a directory.

    Raises:
        ProfileError: there is none.
    """
    for known in known_mounts():
        if (known.alive or known.local) and known.state.mountpoint == directory:
            return known
    raise ProfileError(f"{directory} is not a lazyfs mount of yours (lazyfs status lists them)")


def _file_name(subject: str) -> str:
    """After the last part of an image's name or a directory, without tag and digest."""
    name = subject.rstrip("/").split("@")[0].rsplit("/", 1)[-1].split(":")[0]
    return f"{name or 'image'}.profile"


def _read(path: Path) -> Profile:
    try:
        if path == STDOUT:
            return decode_profile(sys.stdin.buffer.read(MAX_PROFILE_BYTES + 1))
        return read_profile(path)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from error


def _write(profile: Profile, path: Path) -> None:
    raw = encode_profile(profile)
    if path == STDOUT:
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        return
    path.write_bytes(raw)
    text = f"{path}: {format_size(profile.touched_bytes)} in {len(profile.blocks)} places, "
    files = len({(file.layer, file.path) for file in profile.files})
    print(f"{text}{files} files", file=sys.stderr)


def _document(profile: Profile) -> Mapping[str, object]:
    return {
        "image": profile.image,
        "runs": profile.runs,
        "touched_bytes": profile.touched_bytes,
        "layers": [
            {"digest": digest, "touched_bytes": touched}
            for digest, touched in zip(profile.layers, _touched_by_layer(profile), strict=True)
        ],
        "files": [
            {
                "layer": file.layer + 1,
                "path": "/" + os.fsdecode(file.path),
                "offset": file.offset,
                "length": file.length,
            }
            for file in profile.files
        ],
    }


def _touched_by_layer(profile: Profile) -> Sequence[int]:
    touched: Counter[int] = Counter()
    for run in profile.blocks:
        touched[run.layer] += run.length * 4096
    return [touched[number] for number in range(len(profile.layers))]


def _show(profile: Profile) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=PLAIN_WIDTH)
    console.print(f"image    {profile.image}")
    console.print(f"made of  {profile.runs} recording{'s' if profile.runs > 1 else ''}")
    console.print(f"read     {format_size(profile.touched_bytes)}\n")
    layers = Table("layer", "read", "digest", box=None, pad_edge=False)
    for number, touched in enumerate(_touched_by_layer(profile), 1):
        layers.add_row(str(number), format_size(touched), profile.layers[number - 1])
    console.print(layers)
    if not profile.files:
        return
    files = Table("\nfirst", "\nlayer", "\nfile", box=None, pad_edge=False)
    for file in profile.files[:SHOWN_FILES]:
        path = printable("/" + file.path.decode("utf-8", "backslashreplace"))
        files.add_row(format_size(file.length), str(file.layer + 1), path)
    console.print(files)
    more = len(profile.files) - SHOWN_FILES
    if more > 0:
        console.print(f"... {more} more parts of files (--json has all)")
