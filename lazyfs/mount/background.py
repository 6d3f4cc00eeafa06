"""The daemon's own process in the background, and how it tells its starter what happens.

The starter passes a pipe, on which the daemon writes one JSON object a line: ``{"warning":
TEXT}`` any number of times, then ``{"ready": true}`` or ``{"error": TEXT}``, then it closes it.
A pipe that nobody reads any more ends the daemon: whoever wanted the mount is gone.
"""

import argparse
import contextlib
import json
import logging
import os
import traceback
from collections.abc import Sequence

import trio

from cache.errors import CacheError
from lazyfs.errors import LazyfsError
from lazyfs.fuse.errno_table import first_cause
from lazyfs.mount.daemon import raise_file_limit, serve_mount
from lazyfs.mount.options import ImageOpener
from lazyfs.mount.request import MountRequest
from registry.errors import RegistryError

EXPECTED_ERRORS = (LazyfsError, RegistryError, CacheError, OSError)

log = logging.getLogger(__name__)


class ReportPipe(logging.Handler):
    """The daemon's end of the pipe; while open it also takes warnings from the log."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.WARNING)
        os.set_inheritable(descriptor, False)
        self._descriptor: int | None = descriptor

    def send(self, kind: str, value: object) -> None:
        """Write one line.

        Raises:
            BrokenPipeError: the starter is gone.
        """
        if self._descriptor is not None:
            line = json.dumps({kind: value}).encode() + b"\n"
            while line:
                line = line[os.write(self._descriptor, line) :]

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on."""
        try:
            self.send("warning", record.getMessage())
        except OSError:
            self.handleError(record)

    def finish(self, kind: str, value: object) -> None:
        """Write the last line."""
        logging.getLogger().removeHandler(self)
        self.send(kind, value)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def main(open_image: ImageOpener, arguments: Sequence[str] | None = None) -> int:
    """Run the daemon that ``lazyfs.mount.start`` asks for; return its exit status."""
    parser = argparse.ArgumentParser(prog="lazyfs-mount-daemon")
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("request", type=MountRequest.from_json)
    args = parser.parse_args(arguments)
    os.set_inheritable(args.lock_fd, False)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("httpcore", "httpx", "hpack", "pyfuse3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    raise_file_limit()
    report = ReportPipe(args.report_fd)
    logging.getLogger().addHandler(report)
    try:
        trio.run(serve_mount, args.request, open_image, lambda: report.finish("ready", True))
    except Exception as error:  # noqa: BLE001 - the outermost frame tells the starter
        failure = first_cause(error)
        traceback.print_exception(error)
        text = str(failure)
        if not isinstance(failure, EXPECTED_ERRORS):
            text = f"internal error: {type(failure).__name__}: {failure}"
        with contextlib.suppress(BrokenPipeError):
            report.finish("error", text)
        return 1
    return 0
