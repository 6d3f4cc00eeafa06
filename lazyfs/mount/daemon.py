"""Serves one mount, from opening the image to the last request.

It ends when a signal asks for it or when somebody unmounts it; either way the mount is gone
and its runtime folder too. Killed, it leaves both for ``lazyfs umount``. It never touches the
mount that it serves.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from lazyfs.errors import MountError
from lazyfs.fuse import session
from lazyfs.fuse.operations import ImageOperations
from lazyfs.model import ROOT_NODE
from lazyfs.mount.control import short_address
from lazyfs.mount.mountinfo import current_mounts, top_mount
from lazyfs.mount.options import ImageOpener, MountedImage
from lazyfs.mount.request import MountRequest
from lazyfs.mount.runtime import MountState, RuntimeFolder
from lazyfs.mount.tuning import tune

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

ANSWER_WITHIN_S = 5.0
"""How long a process that asked for the status may take to read it."""

log = logging.getLogger(__name__)


async def serve_mount(
    request: MountRequest, open_image: ImageOpener, on_ready: Callable[[], None]
) -> bool:
    """Mount and serve until the end; return whether it came to a mount at all.

    Args:
        request: what to mount where.
        open_image: what gives the tree.
        on_ready: called once the mount can be used; what it raises ends the mount.

    Raises:
        MountError: it could not be mounted.
        Whatever ``open_image`` raises.
    """
    serving = trio.Event()
    with trio.open_signal_receiver(*ENDING_SIGNALS) as signals:
        # A second signal takes its usual effect on leaving this block: nothing may be left then.
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_on_signal, signals, serving, nursery.cancel_scope)
                async with open_image(request.image, request.options) as image:
                    await _serve_image(request, image, serving, on_ready)
                nursery.cancel_scope.cancel()
        finally:
            request.folder.remove()
    return serving.is_set()


async def _serve_image(
    request: MountRequest, image: MountedImage, serving: trio.Event, on_ready: Callable[[], None]
) -> None:
    options = request.options
    layers = _layers(image)
    operations = ImageOperations(image.tree, options.timeout_s, _size_bytes(layers))
    await _check_root(request.image, operations, image)
    _warn_of_notes(layers)
    fuse_options = session.mount_options(
        request.image,
        allow_other=options.allow_other or os.geteuid() == 0,
        suid=options.suid,
        dev=options.dev,
    )
    place = _Place(request.mountpoint)

    async def announce() -> None:
        await operations.usable.wait()
        state = MountState(
            request.mountpoint, request.image, os.getpid(), time.time(), place.device
        )
        if place.device is not None:
            tune(place.device)
        request.folder.write_state(state)
        log.info("serving %s on %s", request.image, request.mountpoint)
        on_ready()

    def document() -> dict[str, object]:
        return {**image.status(), "fuse": operations.counters.as_document()}

    with (
        _listening(request.folder) as listener,
        session.mounted(operations, request.mountpoint, fuse_options, place.is_ours),
    ):
        place.take()
        serving.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer_status, listener, document)
            nursery.start_soon(announce)
            await session.serve()
            nursery.cancel_scope.cancel()


class _Place:
    """Where the mount is, as the kernel's list of mounts has it."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self.device: str | None = None
        """The device of our mount."""

    def _top(self) -> str | None:
        top = top_mount(self._mountpoint, current_mounts())
        return None if top is None else top.device

    def take(self) -> None:
        """Note what was mounted just now."""
        self.device = self._top()

    def is_ours(self) -> bool:
        """Whether our mount is still there, on top."""
        return self.device is not None and self._top() == self.device


async def _end_on_signal(
    signals: AsyncIterator[int], serving: trio.Event, everything: trio.CancelScope
) -> None:
    """Let requests in hand be answered, for a moment, then end what is left."""
    async for number in signals:
        log.info("ending: %s", signal.Signals(number).name)
        if serving.is_set():
            session.stop_serving()
            await trio.sleep(session.GRACE_S)
        everything.cancel()
        return


async def _check_root(name: str, operations: ImageOperations, image: MountedImage) -> None:
    """Refuse an image without a readable root directory: its mount could only fail.

    Raises:
        MountError: the root is something else, or its attributes did not come in time.
        LazyfsError: the root cannot be read.
    """
    with trio.move_on_after(operations.deadline_s):
        root = await image.tree.attributes(ROOT_NODE)
        if not stat.S_ISDIR(root.mode):
            raise MountError(f"the root of {name} is not a directory")
        return
    raise MountError(f"the root of {name} did not come within {operations.deadline_s:g} s")


def _layers(image: MountedImage) -> list[dict[str, object]]:
    """What the image says of its layers."""
    layers = image.status().get("layers")
    return (
        [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    )


def _size_bytes(layers: list[dict[str, object]]) -> int:
    sizes = (layer.get("size_bytes") for layer in layers)
    return sum(size for size in sizes if isinstance(size, int))


def _warn_of_notes(layers: list[dict[str, object]]) -> None:
    """Say what a user should know about the layers before trusting the mount."""
    for number, layer in enumerate(layers, 1):
        notes = layer.get("notes")
        for note in notes if isinstance(notes, list) else []:
            log.warning("layer %d: %s", number, note)


@contextlib.contextmanager
def _listening(folder: RuntimeFolder) -> Iterator[trio.SocketListener]:
    """The socket at which the status can be had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        with short_address(folder.control) as address:
            bound.bind(address)
        bound.listen()
        yield trio.SocketListener(trio.socket.from_stdlib_socket(bound))


async def _answer_status(
    listener: trio.SocketListener, document: Callable[[], dict[str, object]]
) -> None:
    """Give everybody who connects the status of this moment."""

    async def answer(stream: trio.SocketStream) -> None:
        try:
            text = json.dumps(document(), default=str)
        except Exception as error:  # a bug in a figure must not end the mount
            log.exception("the status could not be made")
            text = json.dumps({"problem": f"the status could not be made: {error!r}"})
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(ANSWER_WITHIN_S):
            await stream.send_all(text.encode())

    await trio.serve_listeners(answer, [listener])


def raise_file_limit() -> None:
    """Use as many open files as the system allows: the cache may want many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
