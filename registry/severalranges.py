"""Whether the hosts of a repository give several ranges of a blob by one answer, as it turns out.

HTTP has it (RFC 9110, 14.2), and registries that serve blobs themselves mostly do it; object
storage often gives the whole blob instead. One request finds out, while others ask for one range.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from registry.errors import OneRangeError, TransportError

AT_ONCE = 32
"""Ranges that one request asks for at most: 0.7 KB of header, and fewer than servers refuse."""


class SeveralRanges:
    """What is known of it, for as long as a repository is open."""

    def __init__(self) -> None:
        self._works: bool | None = None
        self._is_tried = False

    @property
    def at_once(self) -> int:
        """So many ranges may be asked for together now."""
        return AT_ONCE if self._works or (self._works is None and not self._is_tried) else 1

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Learn from what becomes of a request for several ranges within the block."""
        self._is_tried = True
        try:
            yield
        except OneRangeError:
            self._works = False
            raise
        except TransportError:
            if self._works is None:  # perhaps that was why
                self._works = False
            raise
        else:
            if self._works is None:
                self._works = True
        finally:
            self._is_tried = False
