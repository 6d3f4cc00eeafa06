"""How pure code asks for bytes: a generator that yields what it lacks.

A parser of a lazily fetched image cannot be handed "the bytes", for it learns only while
parsing which bytes it needs. So each operation is a generator of type ``Steps[T]``: it
yields a ``Need`` (bytes of a device) or a ``Derive`` (bytes computed from such bytes), is
sent the bytes, and returns a ``T``. It never awaits, opens or sleeps. Whoever runs it
decides where bytes come from: the mount sends verified bytes from the cache or the
registry (``lazyfs.image.drive``), tests and fuzzers send slices of a file (``run``).

    def magic() -> Steps[int]:
        data = yield Need(0, 1024, 4)
        return int.from_bytes(data, "little")
"""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Need(NamedTuple):
    """Exactly ``length`` bytes at ``offset`` of a device.

    Device 0 is the image itself; device n is the n-th slot of its device table (from 1).
    A range that passes the device's end is answered with ``TruncatedRecordError``.
    """

    device: int
    offset: int
    length: int


class Derive(NamedTuple):
    """Bytes computed from other bytes, such as a decompressed pcluster.

    The driver keeps results in a bounded cache under ``key``, computes a wanted result
    once however many ask, and runs ``compute`` off the event loop.
    """

    key: tuple[int, ...]
    """Names the result within one image."""
    inputs: tuple[Need, ...]
    compute: Callable[[Sequence[bytes]], bytes]
    """Pure and thread-safe; raises ``ImageFormatError``."""
    size_bytes: int
    """Length of the result, or a bound on it."""


Request: TypeAlias = Need | Derive
Steps: TypeAlias = Generator[Request, bytes, T]


def run(steps: Steps[T], read: Callable[[Need], bytes]) -> T:
    """Run ``steps`` to its end with bytes from a function, on the spot.

    Raises:
        Whatever ``steps``, ``read`` or a computation raises.
    """
    try:
        request = next(steps)
        while True:
            try:
                if isinstance(request, Need):
                    data = read(request)
                else:
                    data = request.compute([read(need) for need in request.inputs])
            except Exception as error:  # noqa: BLE001 - the steps may handle it, as with send()
                request = steps.throw(error)
            else:
                request = steps.send(data)
    except StopIteration as stop:
        result: T = stop.value
        return result
