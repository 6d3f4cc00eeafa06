"""Run a command in a container whose root is an image that is fetched lazily.

The container starts as soon as its first file is here. What it writes goes to a layer of its own,
which is dropped at the end (--rw=DIR keeps it). crun or runc runs it, with Docker's defaults for
capabilities and for what of /proc and /sys can be seen. Signals are passed on, SIGTERM as the
image's stop signal. Nothing is left at the end; what a crash leaves, the next run removes.

Exit status: that of the command; 125 if lazyfs or the runtime failed, 126 if the command cannot be
run, 127 if there is none of that name.

Examples:
  lazyfs run docker.io/library/debian:12 cat /etc/os-release
  lazyfs run -it example.org/app:1.2 sh
  lazyfs run --network none --read-only -u 1000 -v $PWD:/data:ro example.org/app:1.2
  lazyfs run --memory 512MiB --cpus 1.5 -e DEBUG=1 example.org/app:1.2 serve --port 80
"""

import argparse
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from lazyfs.cli.mount import (
    add_fetching,
    add_prefetch,
    add_seeing,
    fetching_options,
    prefetch_options,
    serve,
)
from lazyfs.cli.options import IMAGE_HELP, add_hosts_dir, add_platform
from lazyfs.cli.values import size
from lazyfs.errors import LazyfsError, RunError, innermost
from lazyfs.mount.options import FUSE, MountOptions
from lazyfs.mount.request import absolute_image
from lazyfs.mount.writable import in_user_namespace
from lazyfs.run.container import Container, new_container, sweep_containers
from lazyfs.run.image import Described, describe
from lazyfs.run.inside import read_inside
from lazyfs.run.process import EXIT_FAILED, Ending, exit_status_of, run_to_end, stop_signal, why_not
from lazyfs.run.runtime import Runtime, find_runtime
from lazyfs.run.spec import NETWORKS, Bind, Choices, runtime_spec
from lazyfs.run.users import resolve_user
from registry.errors import RegistryError
from registry.jsondoc import encode_json

ENTERED_VARIABLE = "LAZYFS_IN_NAMESPACE"
"""Set once we have made ourselves root of a user namespace."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument(
        "command_words", metavar="CMD", nargs=argparse.REMAINDER, help="instead of the image's"
    )
    group = parser.add_argument_group("the container")
    group.add_argument("-i", "--interactive", action="store_true", help="let it read our input")
    group.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    group.add_argument("--name", help="its name (default: made up)")
    group.add_argument(
        "--rm", action="store_true", help="as always: nothing of it is left (for Docker's habits)"
    )
    group.add_argument(
        *("-e", "--env"), action="append", default=[], metavar="NAME[=VALUE]", help="a variable"
    )
    group.add_argument("--env-file", type=Path, metavar="FILE", help="NAME=VALUE on each line")
    group.add_argument(
        *("-v", "--volume"),
        action="append",
        default=[],
        metavar="SRC:DST[:ro]",
        help="a file or folder of this machine in the container",
    )
    group.add_argument("-w", "--workdir", metavar="DIR", help="its working directory")
    group.add_argument("-u", "--user", metavar="USER[:GROUP]", help="names or numbers")
    group.add_argument("--entrypoint", metavar="CMD", help="instead of the image's; empty: none")
    group.add_argument(
        "--read-only", action="store_true", help="the root cannot be written to; volumes can"
    )
    group.add_argument(
        "--rw", metavar="DIR", default="", help="keep what is written in DIR, for another run"
    )
    group.add_argument("--memory", type=size, metavar="SIZE", help="limit, such as 512MiB")
    group.add_argument("--cpus", type=float, metavar="N", help="limit, such as 1.5")
    group.add_argument(
        "--network",
        choices=NETWORKS,
        default=NETWORKS[0],
        help="host: this machine's (default); none: a loopback device only",
    )
    group.add_argument("--runtime", help="crun, runc or a path (default: what can be used here)")
    add_platform(parser)
    fetching = parser.add_argument_group("fetching and keeping")
    add_fetching(fetching)
    add_prefetch(fetching)
    add_seeing(parser)
    add_hosts_dir(parser)
    parser.add_argument("--quiet", action="store_true", help="no warnings, only errors")


def run(args: argparse.Namespace) -> int:
    """Run the container; its exit status."""
    if os.geteuid() != 0:
        return enter_user_namespace()
    try:
        return run_container(args)
    except (Exception, BaseExceptionGroup) as error:
        failure = innermost(error)
        if args.debug or not isinstance(failure, LazyfsError | RegistryError | OSError):
            raise
        print(f"lazyfs run: {failure}", file=sys.stderr)
        return EXIT_FAILED


def enter_user_namespace() -> int:
    """Start again as root of a user namespace.

    Raises:
        RunError: that is not possible here.
    """
    if os.environ.get(ENTERED_VARIABLE):
        raise RunError("a user namespace did not make us root; is that forbidden here?")
    words = ["unshare", "--map-root-user", "--user", "--mount"]
    words += [sys.executable, "-P", "-m", "lazyfs"]
    os.environ[ENTERED_VARIABLE] = "1"
    try:
        os.execvp(words[0], [*words, *sys.argv[1:]])  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise RunError(f"unshare: {error.strerror}") from error


class Watch(Protocol):
    """Who runs a container for what it does."""

    def ending(self, kill: Callable[[], object]) -> Ending:
        """How it is to end; ``kill`` ends it for good."""
        ...

    def ended(self, container: Container) -> None:
        """It has ended; its root is still mounted."""
        ...


def run_container(args: argparse.Namespace, watch: Watch | None = None) -> int:
    """Run the container; its exit status.

    Args:
        args: as ``add_arguments`` declares them.
        watch: who wants to know of it.

    Raises:
        LazyfsError, RegistryError, OSError: it cannot be run.
    """
    import trio

    if args.tty and not os.isatty(0):
        raise RunError("--tty: the input is not a terminal")
    runtime = find_runtime(args.runtime)
    limits = args.memory is not None or args.cpus is not None
    if limits and runtime.limits is not None:
        raise RunError(f"--memory and --cpus cannot be had from {runtime.name}: {runtime.limits}")
    for problem in sweep_containers():
        print(f"lazyfs run: {problem}", file=sys.stderr)
    image = absolute_image(args.image, Path.cwd())
    options = prefetch_options(args, fetching_options(args))
    options = replace(options, suid=True, driver=FUSE)
    described = trio.run(describe, image, options)
    options = replace(options, pin=described.pin)
    choices = _choices(args, runtime)
    with new_container(choices.hostname, image, runtime) as (container, lock):
        _mount(image, options, container, args)
        _prepare(container, described, choices, args)
        kill = partial(runtime.call, container.state, "kill", container.name, "KILL")
        ending = None if watch is None else watch.ending(kill)
        status = _start(container, lock, described, runtime, args, ending)
        if watch is not None:
            watch.ended(container)
        return status


def _choices(args: argparse.Namespace, runtime: Runtime) -> Choices:
    return Choices(
        hostname=args.name or f"lazyfs-{secrets.token_hex(4)}",
        command=args.command_words,
        entrypoint=args.entrypoint,
        environment=_environment(args),
        working_directory=args.workdir,
        binds=[_bind(text) for text in args.volume],
        read_only=args.read_only,
        terminal=_terminal_size() if args.tty else None,
        network=args.network,
        memory_bytes=args.memory,
        cpus=args.cpus,
        in_user_namespace=in_user_namespace(),
        devices_limited=runtime.limits is None,
    )


def _terminal_size() -> tuple[int, int]:
    columns, lines = os.get_terminal_size(0)
    return columns, lines


def _environment(args: argparse.Namespace) -> dict[str, str]:
    lines = []
    if args.env_file is not None:
        lines = [line.strip() for line in args.env_file.read_text().splitlines()]
    found = {}
    for word in [*(line for line in lines if line and not line.startswith("#")), *args.env]:
        name, sign, value = word.partition("=")
        if sign:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _bind(text: str) -> Bind:
    """What ``SRC:DST[:ro]`` means.

    Raises:
        RunError: not of that form, or nothing is there.
    """
    source, _, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    if not destination.startswith("/") or mode not in ("", "ro", "rw"):
        raise RunError(f"{text!r} is not SRC:DST[:ro]")
    if not Path(source).exists():
        raise RunError(f"{source} does not exist")
    return Bind(os.fspath(Path(source).absolute()), destination, mode == "ro")


def _mount(
    image: str, options: MountOptions, container: Container, args: argparse.Namespace
) -> None:
    args.directory = os.fspath(container.root)
    args.mkdir = args.foreground = False
    serve(image, options, args)


def _prepare(
    container: Container, described: Described, choices: Choices, args: argparse.Namespace
) -> None:
    """Write what the runtime wants to know, and the files of the container's own."""
    root = os.fspath(container.root)
    wish = described.config.user if args.user is None else args.user
    user = resolve_user(wish, read_inside(root, "etc/passwd"), read_inside(root, "etc/group"))
    files = list(_own_files(container, choices))
    spec = runtime_spec(described.config, choices, user, root, files)
    (container.path / "config.json").write_bytes(encode_json(spec))


def _own_files(container: Container, choices: Choices) -> Iterator[Bind]:
    shared = choices.network == "host"
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost\n"
    contents = {"hostname": f"{choices.hostname}\n", "hosts": hosts}
    for name in ("hosts", "resolv.conf") if shared else ():
        if (found := Path("/etc") / name).is_file():
            contents[name] = found.read_text()
    contents["hosts"] += f"127.0.0.1\t{choices.hostname}\n"
    for name, content in contents.items():
        path = container.path / name
        path.write_text(content)
        path.chmod(0o644)
        yield Bind(os.fspath(path), f"/etc/{name}", read_only=False)


def _start(
    container: Container,
    lock: int,
    described: Described,
    runtime: Runtime,
    args: argparse.Namespace,
    ending: Ending | None,
) -> int:
    command = runtime.command(
        container.state,
        *("--log", os.fspath(container.log), "--log-format", "json"),
        *("run", "--bundle", os.fspath(container.path), container.name),
    )
    stop = stop_signal(described.config.stop_signal)
    stdin = None if args.interactive or args.tty else subprocess.DEVNULL
    status = run_to_end(command, keep=[lock], stdin=stdin, stop=stop, ending=ending)
    problem = why_not(container.log)
    return exit_status_of(problem) if status == 1 and problem else status
