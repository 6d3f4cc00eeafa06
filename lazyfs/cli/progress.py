"""Progress of long commands: bars on a terminal, plain lines elsewhere, nothing when quiet.

Everything goes to stderr, so that stdout stays the command's result. rich is imported only
when bars are drawn: start-up time is part of every command.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lazyfs.cli.values import format_size
from lazyfs.convert.progress import Progress, ProgressTask


@contextmanager
def open_progress(*, quiet: bool) -> Iterator[Progress]:
    """What fits stderr, for the time of the block."""
    if quiet:
        yield SilentProgress()
    elif sys.stderr.isatty():
        from lazyfs.cli.bars import open_bars

        with open_bars() as bars:
            yield bars
    else:
        yield LineProgress()


class SilentProgress:
    """Says nothing."""

    def begin(self, label: str) -> ProgressTask:
        """As ``Progress.begin``."""
        del label
        return _SilentTask()


class _SilentTask:
    def stage(self, name: str, total_bytes: int) -> None:
        pass

    def advance(self, count_bytes: int) -> None:
        pass

    def finish(self) -> None:
        pass


class LineProgress:
    """One line for each stage: for log files and continuous integration."""

    def begin(self, label: str) -> ProgressTask:
        """As ``Progress.begin``."""
        return _LineTask(label)


class _LineTask:
    def __init__(self, label: str) -> None:
        self._label = label

    def stage(self, name: str, total_bytes: int) -> None:
        self._say(f"{name} {format_size(total_bytes)}")

    def advance(self, count_bytes: int) -> None:
        pass

    def finish(self) -> None:
        self._say("done")

    def _say(self, what: str) -> None:
        sys.stderr.write(f"{self._label}: {what}\n")  # in one piece, whatever interrupts it
