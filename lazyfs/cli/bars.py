"""Progress bars, by rich."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console
from rich.markup import escape

from lazyfs.convert.progress import Progress, ProgressTask


@contextmanager
def open_bars() -> Iterator[Progress]:
    """Bars at the bottom of the terminal, for the time of the block."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(binary_units=True),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as display:
        yield _Bars(display)


class _Bars:
    """A bar for each task that runs; it gives way to a line when the task is done."""

    def __init__(self, display: rich_progress.Progress) -> None:
        self._display = display

    def begin(self, label: str) -> ProgressTask:
        return _Bar(self._display, label)


class _Bar:
    """rich locks by itself, so that any thread may call."""

    def __init__(self, display: rich_progress.Progress, label: str) -> None:
        self._display = display
        self._label = escape(label)
        self._task = display.add_task(self._label, total=None)

    def stage(self, name: str, total_bytes: int) -> None:
        self._display.reset(
            self._task, total=total_bytes, description=f"{self._label}: {escape(name)}"
        )

    def advance(self, count_bytes: int) -> None:
        self._display.advance(self._task, count_bytes)

    def finish(self) -> None:
        self._display.remove_task(self._task)
        self._display.console.print(f"{self._label}: done", highlight=False)
