"""What is told of a layer's pieces that are wrong or cannot be had; of an outage once."""

import logging

from lazyfs.errors import LazyfsError, SourceUnavailableError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.engine import Engine
from lazyfs.layer.failures import Failure, failure_of
from lazyfs.layer.piece import Piece


class Outages:
    """Reports on one layer."""

    def __init__(self, engine: Engine, source: BlobSource, name: str) -> None:
        """Report by ``engine``; ``name`` says in log lines which image and layer it is."""
        self._engine = engine
        self._source = source
        self._name = name
        self._gone = False
        """Whether the source failed the last time (logged once, until it answers again)."""
        self._ended = 0

    def came(self) -> None:
        """A piece came, and was right."""
        if not self._gone:
            return
        self._gone = False
        self._ended += 1
        line = f"{self._name}: can be fetched again"
        fields: dict[str, object] = {"event": "layer_recovered", "layer": self._name}
        self._engine.say(logging.WARNING, line, f"{line} {self._ended}", fields)

    def failed(self, piece: Piece, error: LazyfsError) -> None:
        """A piece cannot be had."""
        gone = isinstance(error, SourceUnavailableError)
        if gone and self._gone:
            self._engine.failures.note(self._failure(piece, error))
        else:
            event = "layer_degraded" if gone else "chunk_failed"
            self.report("cannot be read", piece, error, event)
        self._gone = gone

    def report(
        self, how: str, piece: Piece, error: LazyfsError, event: str, host: str | None = None
    ) -> None:
        """Something is wrong with a piece.

        Args:
            how: what comes of it.
            piece: which.
            error: what it is.
            event: the name of that in the log.
            host: who gave it, if that is known.
        """
        self._engine.report(how, self._failure(piece, error, host), event, self._ended)

    def _failure(self, piece: Piece, error: LazyfsError, host: str | None = None) -> Failure:
        return failure_of(self._name, piece.what, error, host or self._source.origin)
