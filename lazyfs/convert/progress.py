"""How a conversion tells what it is doing; the command line draws it."""

from typing import Protocol


class ProgressTask(Protocol):
    """One thing being done, such as a layer. Every method may be called from any thread."""

    def stage(self, name: str, total_bytes: int) -> None:
        """Begin a stage of ``total_bytes`` bytes of work."""
        ...

    def advance(self, count_bytes: int) -> None:
        """Say that so much more of the stage is done."""
        ...

    def finish(self) -> None:
        """Say that the thing is done."""
        ...


class Progress(Protocol):
    """Shows several tasks."""

    def begin(self, label: str) -> ProgressTask:
        """Show a new task."""
        ...
