"""The daemon's own process in the background, and how it tells its starter what happens.

The starter passes one end of a socket pair, on which the daemon writes one JSON object a line:
``{"warning": TEXT}`` any number of times, then ``{"ready": true}`` or ``{"error": TEXT}``, then
it closes it. If the other end closes first, the starter is gone, and with it whoever wanted the
mount: the daemon ends.
"""

import argparse
import contextlib
import json
import logging
import os
import socket
import traceback
from collections.abc import Sequence
from functools import partial

import trio

from cache.errors import CacheError
from lazyfs.errors import LazyfsError
from lazyfs.fuse.errno_table import first_cause
from lazyfs.mount.asking import asked_ahead, import_meanwhile
from lazyfs.mount.keeper import our_supervisor
from lazyfs.mount.life import EXIT_STATUS, Custody, End
from lazyfs.mount.logs import FORMATS, LogChoice, log_to_stderr
from lazyfs.mount.request import MountRequest, about
from lazyfs.mount.tuning import tune_process
from registry.errors import RegistryError

EXPECTED_ERRORS = (LazyfsError, RegistryError, CacheError, OSError)

log = logging.getLogger(__name__)


class Starter(logging.Handler):
    """The daemon's end of the pair; while open it also takes warnings from the log."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.WARNING)
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)

    def send(self, kind: str, value: object) -> None:
        """Write one line.

        Raises:
            OSError: the starter is gone.
        """
        self._socket.sendall(json.dumps({kind: value}).encode() + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on."""
        with contextlib.suppress(OSError):
            self.send("warning", record.getMessage())

    def finish(self, kind: str, value: object) -> None:
        """Write the last line, if it was not written yet.

        Raises:
            OSError: the starter is gone.
        """
        if self._socket.fileno() != -1:
            logging.getLogger().removeHandler(self)
            self.send(kind, value)
            self._socket.close()

    async def wait_until_gone(self) -> None:
        """Return when the starter is gone; never, once the mount was reported ready."""
        if self._socket.fileno() != -1:
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._socket)
                return
        await trio.sleep_forever()

    def ready(self) -> None:
        """Say that the mount is usable."""
        trio.lowlevel.notify_closing(self._socket)
        self.finish("ready", True)


async def _serve_on(request: MountRequest, custody: Custody) -> End:
    """Serve in the place of a daemon before this one."""
    from lazyfs.mount.daemon import serve_mount
    from lazyfs.mount.openers import open_named

    return await serve_mount(request, open_named, lambda: None, custody)


async def _serve_first(request: MountRequest, custody: Custody, starter: Starter) -> End:
    """Serve, but only as long as the starter lives or has seen the mount ready."""
    end = End.UNBORN

    async def watch(everything: trio.CancelScope) -> None:
        await starter.wait_until_gone()
        log.warning("ending: who started the mount is gone")
        everything.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        async with asked_ahead(request, nursery) as source:
            await import_meanwhile()
            from lazyfs.mount.daemon import serve_mount
            from lazyfs.mount.openers import open_named

            opener = open_named if source is None else partial(open_named, source=source)
            end = await serve_mount(request, opener, starter.ready, custody)
        nursery.cancel_scope.cancel()
    return end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon that a supervisor asks for; return its exit status.

    0: the mount is over, or never was; ``HANDED_OVER``: another daemon shall go on.
    """
    parser = argparse.ArgumentParser(prog="lazyfs-mount-daemon")
    parser.add_argument("--report-fd", type=int, help="of who started the mount, the first time")
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--keeper-fd", type=int, required=True)
    parser.add_argument("--fuse-fd", type=int, help="of the mount, where one is taken over")
    parser.add_argument("--log-format", default=FORMATS[0])
    parser.add_argument("--log-level")
    parser.add_argument("request", type=MountRequest.from_json)
    args = parser.parse_args(arguments)
    os.set_inheritable(args.lock_fd, False)
    if args.fuse_fd is not None:
        os.set_inheritable(args.fuse_fd, False)
    choice = LogChoice(args.log_format, args.log_level)
    starter = None if args.report_fd is None else Starter(args.report_fd)
    custody = Custody(our_supervisor(args.keeper_fd), args.fuse_fd)
    return _run(args.request, choice, starter, custody)


def serve_first(request: MountRequest, logs: LogChoice, report: int, keeper: int) -> int:
    """Be the first daemon of a mount, in this process; return its exit status.

    Args:
        request: what to mount where.
        logs: how to log.
        report: descriptor of the line to who started the mount.
        keeper: descriptor of the line to the supervisor.
    """
    return _run(request, logs, Starter(report), Custody(our_supervisor(keeper), None))


def _run(request: MountRequest, logs: LogChoice, starter: Starter | None, custody: Custody) -> int:
    log_to_stderr(logs, logging.INFO, about(request))
    tune_process()
    if starter is not None:
        logging.getLogger().addHandler(starter)
    try:
        if starter is None:
            end = trio.run(_serve_on, request, custody)
        else:
            end = trio.run(_serve_first, request, custody, starter)
    except Exception as error:  # noqa: BLE001 - the outermost frame tells who waits
        failure = first_cause(error)
        traceback.print_exception(error)
        text = str(failure)
        if not isinstance(failure, EXPECTED_ERRORS):
            text = f"internal error: {type(failure).__name__}: {failure}"
        if custody.keeper is not None:
            custody.keeper.status(text)
        if starter is not None:
            with contextlib.suppress(OSError):
                starter.finish("error", text)
        return 1
    return EXIT_STATUS.get(end, 0)
