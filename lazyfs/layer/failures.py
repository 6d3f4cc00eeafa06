"""What went wrong with which part of a layer, last: for ``lazyfs explain``, logs and metrics."""

import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from lazyfs.errors import (
    DeadlineExceededError,
    ImageFormatError,
    SourceUnavailableError,
    VerificationError,
)
from registry.errors import ContentError, DeniedError, NotFoundError, ResponseError

MAX_FAILURES = 1024
"""Parts of all layers of a mount whose last failure is kept, about 1 KiB each."""

MAX_CAUSES = 8
"""How far an error is followed to what it was caused by."""

MAX_MESSAGE_CHARACTERS = 1000

CAUSES = (
    *("verification", "format", "timeout", "rate limit", "denied", "not found"),
    *("server error", "refused", "wrong answer", "unreachable", "other"),
)
"""All values of ``cause_of``."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of one part."""

    layer: str
    part: str
    """``chunk 7``, ``hash blocks 3``."""
    cause: str
    """One of ``CAUSES``."""
    message: str
    host: str
    """Who was asked last, or gave the wrong bytes."""
    status: int | None
    """HTTP status, if an answer of a registry was the cause."""
    attempts: int | None
    """How often the operation was tried before it was given up."""
    expected: str | None
    actual: str | None
    """Digests, if the bytes were wrong."""
    at_s: float
    """Seconds since the epoch."""
    times: int = 1
    """How often the part failed since the mount was opened, as far as that is remembered."""

    def fields(self) -> dict[str, object]:
        """For a log line."""
        names = ("layer", "cause", "host", "status", "attempts", "expected", "actual")
        return {"chunk": self.part} | {name: getattr(self, name) for name in names}


def failure_of(layer: str, part: str, error: Exception, host: str) -> Failure:
    """A failure that happened now, told by its error and what that was caused by."""
    found: dict[str, object] = {}
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        for name in ("host", "status", "attempts", "expected", "actual"):
            if found.get(name) is None:
                found[name] = getattr(cause, name, None)
        cause = cause and cause.__cause__
    status, attempts = found["status"], found["attempts"]
    return Failure(
        layer=layer,
        part=part,
        cause=cause_of(error),
        message=f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARACTERS],
        host=str(found["host"] or host),
        status=status if isinstance(status, int) else None,
        attempts=attempts if isinstance(attempts, int) else None,
        expected=_text(found["expected"]),
        actual=_text(found["actual"]),
        at_s=time.time(),
    )


def cause_of(error: BaseException) -> str:
    """Of which kind an error is: one of ``CAUSES``."""
    if isinstance(error, VerificationError):
        return "verification"
    if isinstance(error, ImageFormatError):
        return "format"
    if isinstance(error, DeadlineExceededError):
        return "timeout"
    if not isinstance(error, SourceUnavailableError):
        return "other"
    if isinstance(error.__cause__, SourceUnavailableError):
        return cause_of(error.__cause__)
    return _cause_in_registry(error.__cause__)


def _cause_in_registry(error: BaseException | None) -> str:
    if isinstance(error, ContentError):
        return "wrong answer"
    if not isinstance(error, ResponseError):
        return "unreachable"
    if isinstance(error, NotFoundError):
        return "not found"
    if isinstance(error, DeniedError):
        return "denied"
    if error.status == 429:
        return "rate limit"
    return "server error" if error.status >= 500 else "refused"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class FailureMemory:
    """The last failure of each part, up to a limit; the oldest are forgotten."""

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], Failure] = OrderedDict()

    def note(self, failure: Failure) -> None:
        """Remember a failure."""
        key = failure.layer, failure.part
        before = self._failures.pop(key, None)
        if before is not None:
            failure = replace(failure, times=before.times + 1)
        self._failures[key] = failure
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    def last(self, layer: str, part: str) -> Failure | None:
        """The last failure of a part."""
        return self._failures.get((layer, part))

    def latest(self, count: int) -> list[Failure]:
        """The latest ones, the newest first."""
        newest = reversed(self._failures.values())
        return [failure for failure, _ in zip(newest, range(count), strict=False)]
