"""How a daemon logs: lines for people, or one JSON object a line for machines.

Who logs an event of a mount's life names it in ``extra={"event": ...}``, with what belongs to it
under the names in ``FIELDS``. ``docs/monitoring.md`` lists the events.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

FIELDS = (
    *("event", "layer", "chunk", "host", "cause", "status", "attempts", "expected", "actual"),
    *("operation", "errno", "restarts"),
)
"""What a record may have besides its message; values are short and hold no secrets."""

NOISY = ("httpcore", "httpx", "hpack")
"""Loggers of libraries that write each request, with all of its URL."""

MILLISECONDS = 1000


@dataclass(frozen=True, slots=True)
class LogChoice:
    """What the user wants to see of the log."""

    form: str = FORMATS[0]
    level: str | None = None
    """One of ``LEVELS``; None: what is usual."""

    def arguments(self) -> list[str]:
        """The same as words of a command line."""
        return [f"--log-format={self.form}", *([f"--log-level={self.level}"] if self.level else [])]

    def number(self, usual: int) -> int:
        """The level as ``logging`` has it."""
        return logging.getLevelNamesMapping()[self.level.upper()] if self.level else usual


class JsonFormatter(logging.Formatter):
    """One JSON object for each record."""

    def __init__(self, always: Mapping[str, object]) -> None:
        """Write ``always`` into each record, such as the mount that it is about."""
        super().__init__()
        self._always = dict(always)

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, object] = {
            "time": f"{seconds}.{int(record.created % 1 * MILLISECONDS):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                document[name] = value
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def log_to_stderr(choice: LogChoice, usual_level: int, always: Mapping[str, object]) -> None:
    """Have this process log to standard error as the user wants it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(always) if choice.form == "json" else logging.Formatter(TEXT_FORMAT)
    )
    logging.basicConfig(level=choice.number(usual_level), handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
