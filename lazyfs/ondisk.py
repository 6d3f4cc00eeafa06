"""Typed tables for little-endian on-disk records.

A record is a ``NamedTuple`` whose fields are annotated with the types below; ``Layout``
turns it into a ``struct`` and checks its size at import, so that a wrong row fails at once.
"""

import struct
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from lazyfs.errors import TruncatedRecordError

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
I64 = Annotated[int, "q"]
Bytes16 = Annotated[bytes, "16s"]
Bytes32 = Annotated[bytes, "32s"]
Bytes64 = Annotated[bytes, "64s"]
Bytes256 = Annotated[bytes, "256s"]

# A record is a NamedTuple; typing has no narrower bound for "a subclass of NamedTuple".
R = TypeVar("R", bound=tuple)  # type: ignore[type-arg]


class Layout(Generic[R]):
    """How a record type lies on disk."""

    def __init__(self, record: type[R], size_bytes: int) -> None:
        """Derive the layout of ``record``, which must come out as ``size_bytes`` bytes."""
        hints = get_type_hints(record, include_extras=True)
        formats = [get_args(hint)[1] for hint in hints.values()]
        self._struct = struct.Struct("<" + "".join(formats))
        if self._struct.size != size_bytes:
            raise AssertionError(f"{record.__name__}: {self._struct.size} bytes, not {size_bytes}")
        self._record = record
        self.size_bytes = size_bytes

    def decode(self, data: bytes | memoryview, offset: int = 0) -> R:
        """Decode the record at ``offset`` of ``data``.

        Raises:
            TruncatedRecordError: the record passes the end of ``data``.
        """
        return self._record(*self.fields(data, offset))

    def fields(self, data: bytes | memoryview, offset: int = 0) -> tuple[Any, ...]:
        """As ``decode``, without their names: quicker.

        Raises:
            TruncatedRecordError: the record passes the end of ``data``.
        """
        if offset < 0 or offset + self.size_bytes > len(data):
            raise TruncatedRecordError(
                f"{self._record.__name__}: needs {self.size_bytes} bytes at offset {offset}, "
                f"there are {len(data)}"
            )
        return self._struct.unpack_from(data, offset)

    def encode(self, record: R) -> bytes:
        """The bytes of ``record``."""
        return self._struct.pack(*record)


class _Example(NamedTuple):
    """Documents the form of a record and is checked like any other."""

    magic: U32  # 0x00
    flags: U16  # 0x04


Layout(_Example, size_bytes=6)
