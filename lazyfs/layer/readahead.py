"""Who reads an image from front to back gets the next chunks before asking.

Pure. Sequential readers are told by where they read: a read that begins about where another one
ended goes on with it. How far ahead is fetched grows with what a reader has read in a row, so that
it doubles with each window that was used, and what is fetched in vain is never more than what was
read: nothing for who reads here and there.
"""

from dataclasses import dataclass

from lazyfs.model import ByteRange

READERS = 8
"""Told apart in one image; the one that was quiet for longest is forgotten."""

SLACK_BYTES = 256 << 10
"""A read goes on with another if it begins so close to its end: the kernel sends some at once."""

LEAST_RUN_BYTES = 64 << 10
"""Read in a row, behind the first read, before anything is fetched ahead."""


@dataclass(slots=True)
class Reader:
    """One that reads from front to back."""

    end: int
    """Of what it has read."""
    run_bytes: int = 0
    """How much it has read in a row, without its first read."""
    ahead: int = 0
    """Up to where was fetched for it."""


class ReadAhead:
    """The sequential readers of one image."""

    def __init__(self) -> None:
        self._readers: list[Reader] = []
        """The last one to read is the last in the list."""

    def used(self, offset: int, length: int, most_bytes: int) -> tuple[Reader, ByteRange] | None:
        """Note a read; who reads, and which range is worth having (perhaps empty).

        Args:
            offset: of the read.
            length: likewise.
            most_bytes: how far ahead to go at most.

        Returns:
            None unless the read goes on with others. The caller sets ``Reader.ahead`` to the end
            of what it fetches of the range.
        """
        end = offset + length
        for index in range(len(self._readers) - 1, -1, -1):
            reader = self._readers[index]
            if -SLACK_BYTES <= offset - reader.end <= SLACK_BYTES:
                break
        else:
            if len(self._readers) == READERS:
                del self._readers[0]
            self._readers.append(Reader(end))
            return None
        if index != len(self._readers) - 1:
            self._readers.append(self._readers.pop(index))
        if end > reader.end:
            reader.run_bytes += min(length, end - reader.end)
            reader.end = end
        if reader.run_bytes < LEAST_RUN_BYTES:
            return None
        start = max(reader.end, reader.ahead)
        stop = reader.end + min(reader.run_bytes, most_bytes)
        return reader, ByteRange(start, max(0, stop - start))
