"""A layer that is opened when somebody first wants something of it."""

import logging
from collections.abc import Awaitable, Callable

import trio

from lazyfs.errors import LazyfsError, SourceUnavailableError
from lazyfs.interfaces import LayerReader

log = logging.getLogger(__name__)

Opener = Callable[[], Awaitable[LayerReader]]


class _Attempt:
    """One try to open; those who come meanwhile wait for it."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.error: Exception | None = None


class LayerFile:
    """The proven bytes of one layer.

    Opening belongs to the store, not to the reader that asked first: it goes on when that
    one gives up (a layer without a chunk table takes a while). A failure is told to all who wait
    for it and to nobody else: the next one tries anew.
    """

    def __init__(self, nursery: trio.Nursery, opener: Opener) -> None:
        """Open by ``opener``, in a task of ``nursery``."""
        self.reader: LayerReader | None = None
        """Once it is open."""
        self.last_error: str | None = None
        """Why the last try failed, if it did."""
        self._nursery = nursery
        self._opener = opener
        self._attempt: _Attempt | None = None

    async def opened(self) -> LayerReader:
        """The layer.

        Raises:
            LazyfsError: it cannot be opened, and why.

        Cancelled: opening goes on.
        """
        if self.reader is not None:
            return self.reader
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = _Attempt()
            self._nursery.start_soon(self._open, attempt)
        await attempt.over.wait()
        if self.reader is None:
            error = attempt.error or SourceUnavailableError("the store is ending")
            raise type(error)(*error.args)  # anew: a traceback grows with each raise
        return self.reader

    async def _open(self, attempt: _Attempt) -> None:
        try:
            self.reader = await self._opener()
            self.last_error = None
        except Exception as error:  # one that got out would end the store
            if not isinstance(error, LazyfsError):
                log.exception("internal error while opening a layer")
            attempt.error = error
            self.last_error = str(error)
        finally:
            self._attempt = None
            attempt.over.set()
