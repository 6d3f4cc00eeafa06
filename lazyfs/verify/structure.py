"""The EROFS image in checked contents: everything that its root leads to, in one thread."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import trio

from lazyfs.erofs.fsck import Problem, check_tree
from lazyfs.erofs.image import open_image
from lazyfs.errors import LazyfsError, TruncatedRecordError
from lazyfs.steps import Derive, Need, Request, Steps
from lazyfs.verify.content import Content
from lazyfs.verify.findings import Counts, Findings, Kind

DERIVED_BYTES = 16 << 20
"""Decompressed pclusters that are kept: those of metadata are read again and again."""

STEPS_BETWEEN_CHECKS = 256
"""Requests for bytes after which the walk looks whether it was cancelled."""


def check_structure(devices: Sequence[Content], findings: Findings, counts: Counts) -> int:
    """Walk an image; runs in a worker thread of trio.

    Args:
        devices: the image itself, then its extra devices in the order of its table.
        findings: what is wrong goes there.
        counts: what was looked at goes there.

    Returns:
        How many extra devices the image has.

    Raises:
        OSError: a device cannot be read.
        trio.Cancelled.
    """
    runner = _Runner(devices)

    def report(problem: Problem) -> None:
        path = problem.path.decode("utf-8", "surrogateescape")
        findings.add(Kind.EROFS, f"{problem.what}: {problem.error}", path=path, nid=problem.nid)

    used = 0
    with findings.take(Kind.EROFS):
        image = runner.run(open_image())
        used = len(image.devices)
        if used >= len(devices):
            text = f"data on {used} more devices, {len(devices) - 1} are there"
            findings.add(Kind.EROFS, text)
        end = image.superblock.block_count * image.superblock.block_bytes
        if end > devices[0].size_bytes and not used:
            text = f"superblock: image of {end} bytes, there are {devices[0].size_bytes}"
            findings.add(Kind.EROFS, text)
        found = runner.run(check_tree(image, runner.readable, report))
        counts.inodes += found.inodes
        counts.directories += found.directories
        counts.names += found.names
        counts.extents += found.extents
    return used


T = TypeVar("T")


class _Runner:
    """Answers steps from contents."""

    def __init__(self, devices: Sequence[Content]) -> None:
        self._devices = devices
        self._derived: OrderedDict[Hashable, bytes] = OrderedDict()
        self._derived_bytes = 0
        self._answers = 0

    def readable(self, device: int, address: int, length: int) -> None:
        """Whether bytes of a device are there (see ``fsck.Readable``)."""
        self._device(device).check(address, length)

    def run(self, steps: Steps[T]) -> T:
        """Run steps to their end."""
        try:
            request: Request = next(steps)
            while True:
                try:
                    data = self._answer(request)
                except LazyfsError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(data)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _answer(self, request: Request) -> bytes:
        self._answers += 1
        if self._answers % STEPS_BETWEEN_CHECKS == 0:
            trio.from_thread.check_cancelled()
        if isinstance(request, Need):
            return self._device(request.device).read(request.offset, request.length)
        data = self._derived.get(request.key)
        if data is None:
            data = self._derive(request)
        else:
            self._derived.move_to_end(request.key)
        return data

    def _derive(self, request: Derive) -> bytes:
        inputs = [
            self._device(need.device).read(need.offset, need.length) for need in request.inputs
        ]
        data = request.compute(inputs)
        self._derived[request.key] = data
        self._derived_bytes += len(data)
        while self._derived_bytes > DERIVED_BYTES and len(self._derived) > 1:
            _, dropped = self._derived.popitem(last=False)
            self._derived_bytes -= len(dropped)
        return data

    def _device(self, number: int) -> Content:
        if number >= len(self._devices):
            raise TruncatedRecordError(f"data on device {number}, which is not there")
        return self._devices[number]
