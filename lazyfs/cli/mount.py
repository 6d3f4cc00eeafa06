"""Mount an image on a directory.

The command returns when the mount is usable; a process of its own then serves it in the
background, until "lazyfs umount DIR" (or "umount DIR") takes it down. Only what is read is
fetched. What is read is verified, and kept in a cache that all mounts of a user share.

Nothing needs root: other users then need the fuse3 package, and only they themselves can look
into the mount (--allow-other).

Examples:
  lazyfs mount docker.io/library/debian@sha256:... /mnt
  lazyfs mount localhost:5000/app:1.2 /mnt                 a registry on this machine
  lazyfs mount oci:images/app:1.2 app --mkdir              an OCI layout folder
  lazyfs mount erofs:meta.erofs,device=data.img /mnt
  lazyfs mount example.org/app:1.2 /mnt --timeout 10s      give up on a dead registry after 10 s
  lazyfs mount example.org/app:1.2 /mnt --prefetch all     fetch the rest meanwhile
"""

import argparse
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from cache.freespace import DEFAULT_MIN_FREE
from lazyfs.cli.options import IMAGE_HELP, add_hosts_dir, add_platform
from lazyfs.cli.values import format_size, min_free, seconds, size
from lazyfs.errors import MountError
from lazyfs.model import VerifyMode
from lazyfs.mount.census import lower_directories
from lazyfs.mount.changes import sweep_changes
from lazyfs.mount.logs import FORMATS, LEVELS, LogChoice, log_to_stderr
from lazyfs.mount.metricsaddress import canonical_address
from lazyfs.mount.mountpoint import prepare, resolve
from lazyfs.mount.options import (
    DEFAULT_CACHE_SIZE_BYTES,
    DEFAULT_TIMEOUT_S,
    DRIVER_CHOICES,
    FUSE,
    ON_TIMEOUT_CHOICES,
    PREFETCH_CHOICES,
    MountOptions,
    default_cache_dir,
)
from lazyfs.mount.request import MountRequest, absolute_image
from lazyfs.mount.runtime import MountState, base_folder, create_folder, sweep
from lazyfs.mount.service import Service, begin
from lazyfs.profilefile import read_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("directory", metavar="DIR", help="where to mount it; must exist")
    parser.add_argument("--mkdir", action="store_true", help="create DIR if it does not exist")
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="serve the mount in this process; Ctrl-C or SIGTERM unmounts",
    )
    parser.add_argument(
        "--driver",
        choices=DRIVER_CHOICES,
        default=FUSE,
        help="what serves the files: fuse (default); kernel: the kernel's own EROFS on layers that "
        "are fetched lazily (faster; for root, and trusted images); auto: kernel if possible",
    )
    parser.add_argument(
        "--rw",
        metavar="DIR",
        help="a mount that can be written to, by overlayfs (without root: by fuse-overlayfs); the "
        "changes are kept in DIR, which a later mount of the image can go on with; --rw without "
        "=DIR drops them when it is unmounted",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="show each layer in a directory of its own, DIR/0 being the bottom one, as overlayfs "
        "wants them: with whiteouts and opaque marks; prints the lowerdir= option for it",
    )
    parser.add_argument(
        "--promote",
        action="store_true",
        help="with the kernel driver: fetch everything, then put local files in the place of the "
        "lazy ones; from then on the mount needs neither daemon nor registry",
    )
    add_platform(parser)
    group = parser.add_argument_group("fetching and keeping")
    add_fetching(group)
    add_prefetch(group)
    add_hosts_dir(parser)
    _add_permissions(parser)
    add_seeing(parser)
    parser.add_argument("--quiet", action="store_true", help="no warnings, only errors")


def add_prefetch(group: "argparse._ArgumentGroup") -> None:
    """Declare what is fetched before anybody reads it."""
    group.add_argument(
        "--prefetch",
        choices=PREFETCH_CHOICES,
        default="profile",
        help="what to fetch in the background, behind what is being read; guess: what is likely to "
        "be read next; profile: also what a start reads, if a profile was pushed with the image or "
        "is given (default); all: then all of it; none: nothing",
    )
    group.add_argument(
        "--prefetch-rate",
        metavar="SIZE",
        type=size,
        default=0,
        help="bytes a second that may come while the rest of the image is fetched; 0: no limit",
    )
    group.add_argument(
        "--profile",
        metavar="FILE",
        type=Path,
        help="the image's startup profile (lazyfs profile makes it), instead of a pushed one",
    )


def prefetch_options(args: argparse.Namespace, options: MountOptions) -> MountOptions:
    """``options`` with what ``add_prefetch`` was given.

    Raises:
        ProfileError: the profile is none.
        OSError: it cannot be read.
    """
    if args.profile is not None:
        read_profile(args.profile)
    return replace(
        options,
        prefetch=args.prefetch,
        prefetch_bytes_per_s=args.prefetch_rate,
        profile=args.profile and args.profile.absolute(),
    )


def add_fetching(group: "argparse._ArgumentGroup") -> None:
    """Declare how layers are fetched and kept."""
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        type=Path,
        default=default_cache_dir(),
        help="where fetched chunks are kept (default: %(default)s)",
    )
    group.add_argument(
        "--cache-size",
        metavar="SIZE",
        type=_cache_size,
        default=DEFAULT_CACHE_SIZE_BYTES,
        help="limit of the cache, such as 500MiB; what was not used for longest goes first; "
        f"0: no limit (default: {format_size(DEFAULT_CACHE_SIZE_BYTES)})",
    )
    group.add_argument(
        "--cache-min-free",
        metavar="SIZE|PERCENT",
        type=min_free,
        default=DEFAULT_MIN_FREE,
        help="what the cache leaves free of its disk: below that it does not grow, and gives back "
        "what was not used for longest; 0: nothing (default: 1GiB or 5%%, whichever is less)",
    )
    group.add_argument(
        "--verify",
        choices=[mode.value for mode in VerifyMode],
        default=VerifyMode.ALWAYS.value,
        help="always: what is fetched and what comes back from the cache (default); "
        "fetch: only what is fetched, the cache is trusted; off: nothing",
    )
    group.add_argument(
        "--timeout",
        metavar="TIME",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        help="after this time a read that waits for the network fails; such as 500ms, 30s, 2m; "
        f"0: never (default: {DEFAULT_TIMEOUT_S:g}s)",
    )
    group.add_argument(
        "--on-timeout",
        choices=ON_TIMEOUT_CHOICES,
        default=ON_TIMEOUT_CHOICES[0],
        help="the error of such a read: EIO (default) or ETIMEDOUT",
    )
    group.add_argument(
        "--plain-http",
        action="store_true",
        help="talk HTTP without TLS to any registry (loopback names may use it anyway)",
    )


def _add_permissions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("permissions")
    group.add_argument(
        "--allow-other",
        action="store_true",
        help="let other users into the mount (root's mounts always do); for users other than "
        "root /etc/fuse.conf must say user_allow_other",
    )
    group.add_argument(
        "--suid", action="store_true", help="honour set-user-ID bits in the image (root only)"
    )
    group.add_argument(
        "--dev", action="store_true", help="honour device nodes in the image (root only)"
    )


def add_seeing(parser: argparse.ArgumentParser) -> None:
    """Declare how a daemon is to be watched."""
    group = parser.add_argument_group("logs and metrics")
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default=FORMATS[0],
        help="text (default), or json: one object a line; see docs/monitoring.md",
    )
    group.add_argument(
        "--log-level",
        choices=LEVELS,
        help="the least that is logged (default: info in the background and as a service)",
    )
    group.add_argument(
        "--metrics",
        metavar="ADDRESS",
        type=metrics_address,
        help="serve Prometheus metrics at unix:PATH, HOST:PORT or PORT (of 127.0.0.1)",
    )


def metrics_address(text: str) -> str:
    """Where metrics are to be served, as an argument's type."""
    try:
        return canonical_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _cache_size(text: str) -> int | None:
    return size(text) or None


def fetching_options(args: argparse.Namespace) -> MountOptions:
    """What ``add_fetching``, ``add_seeing``, ``add_platform`` and ``add_hosts_dir`` were given."""
    return MountOptions(
        cache_dir=args.cache_dir.absolute(),
        cache_size_bytes=args.cache_size,
        cache_min_free=args.cache_min_free,
        verify=VerifyMode(args.verify),
        platform=args.platform,
        timeout_s=args.timeout,
        plain_http=args.plain_http,
        hosts_dir=args.hosts_dir and args.hosts_dir.absolute(),
        on_timeout=args.on_timeout,
        metrics=args.metrics,
    )


def run(args: argparse.Namespace) -> int:
    """Mount the image."""
    options = replace(
        prefetch_options(args, fetching_options(args)),
        driver=args.driver,
        promote=args.promote,
        prefetch="all" if args.promote else args.prefetch,
        layers=args.layers,
        allow_other=args.allow_other,
        suid=args.suid,
        dev=args.dev,
    )
    if args.promote and args.driver == FUSE:
        raise MountError("--promote goes with --driver kernel or auto")
    if (args.suid or args.dev) and os.geteuid() != 0:
        raise MountError("--suid and --dev are for root only")
    if args.rw is not None and (args.layers or args.foreground):
        raise MountError("--rw goes neither with --layers nor with --foreground")
    status = serve(absolute_image(args.image, Path.cwd()), options, args)
    if args.layers and not args.foreground:
        mountpoint = resolve(args.directory)
        print(f"lowerdir={lower_directories(mountpoint, len([*Path(mountpoint).iterdir()]))}")
    return status


def serve(image: str, options: MountOptions, args: argparse.Namespace) -> int:
    """Mount what ``image`` names on ``args.directory``, in the background or the foreground."""
    service = None
    if args.foreground:
        logs = LogChoice(args.log_format, "debug" if args.debug else args.log_level)
        usual = logging.INFO if "NOTIFY_SOCKET" in os.environ else logging.WARNING
        place = resolve(args.directory)
        always = {"mountpoint": place, "image": image, "pid": os.getpid()}
        log_to_stderr(logs, usual, always)
        service = begin(place, image)
        if service.taken_over is not None:
            folder, lock, _ = service.taken_over
            request = MountRequest(image, resolve(args.directory), options, folder)
            try:
                return _mount(request, lock, args, service)
            finally:
                os.close(lock)
    sweep()
    sweep_changes()
    needed = (options.cache_dir, base_folder())
    mountpoint, created = prepare(args.directory, needed, create=args.mkdir)
    done = False
    try:
        cache_dir = os.fspath(options.cache_dir)
        folder, lock = create_folder(
            MountState(mountpoint, image, os.getpid(), time.time(), cache_dir=cache_dir)
        )
        try:
            request = MountRequest(image, mountpoint, options, folder)
            status = _mount(request, lock, args, service)
        finally:
            os.close(lock)
        done = True
        return status
    finally:
        if created and not done:
            _remove_directory(mountpoint)


def _mount(
    request: MountRequest, lock: int, args: argparse.Namespace, service: Service | None
) -> int:
    def show(warning: str) -> None:
        if not args.quiet:
            print(f"lazyfs mount: {warning}", file=sys.stderr)

    if args.quiet and not (args.debug or args.log_level):
        logging.getLogger().setLevel(logging.ERROR)
    if service is not None:
        from lazyfs.mount.foreground import serve_in_foreground

        return serve_in_foreground(request, show, service)
    from lazyfs.mount.start import start_in_background

    logs = LogChoice(args.log_format, "debug" if args.debug else args.log_level)

    def start(what: MountRequest) -> None:
        start_in_background(what, lock, show=show, logs=logs)

    changes = getattr(args, "rw", None)
    if changes is None:
        start(request)
    else:
        from lazyfs.mount.writable import mount_writable

        mount_writable(request, Path(changes).absolute() if changes else None, start)
    return 0


def _remove_directory(path: str) -> None:
    """Take back what --mkdir made, as far as it is empty."""
    try:
        Path(path).rmdir()
    except OSError:
        return
