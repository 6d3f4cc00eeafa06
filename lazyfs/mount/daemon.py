"""Serves one mount, from opening the image to the last request.

It ends when a signal asks for it or when somebody unmounts it; either way the mount is gone
and its runtime folder too. If somebody keeps the mount's descriptor (``lazyfs.mount.keeper``), the
mount goes on without this process: after SIGUSR1, and when it dies; the next daemon takes it over.
Otherwise, killed, it leaves both for ``lazyfs umount``. It never touches the mount that it serves.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import trio

from lazyfs.errors import MountError
from lazyfs.fuse import kernelmount
from lazyfs.fuse.errno_table import first_cause
from lazyfs.fuse.operations import ImageOperations
from lazyfs.fuse.server import Server
from lazyfs.layer.counters import LayerCounters
from lazyfs.model import ROOT_NODE
from lazyfs.mount import roles
from lazyfs.mount.answering import answer_all
from lazyfs.mount.control import short_address
from lazyfs.mount.keeper import Keeper
from lazyfs.mount.kerneldriver import (
    Driver,
    KernelDriverError,
    Stacker,
    choose,
    stack,
    stacker_ahead,
)
from lazyfs.mount.life import SIGNALS, Custody, End, Life
from lazyfs.mount.mountedimage import ImageOpener, MountedImage
from lazyfs.mount.options import AUTO, FUSE, KERNEL
from lazyfs.mount.promotion import Promotion
from lazyfs.mount.request import MountRequest
from lazyfs.mount.runtime import RuntimeFolder
from lazyfs.mount.tuning import give_back_freed_memory, read_further_ahead
from lazyfs.store.layers import LayerFiles

TIMEOUT_ERRNOS = {"eio": errno.EIO, "etimedout": errno.ETIMEDOUT}
"""By ``MountOptions.on_timeout``."""

WATCHDOG_SHARE = 0.25
"""Part of the keeper's patience after which it hears of us again."""

GIVE_BACK_EVERY_S = 10.0
"""How long memory is kept at most that was freed and not used again."""

log = logging.getLogger(__name__)


async def serve_mount(
    request: MountRequest,
    open_image: ImageOpener,
    on_ready: Callable[[], None],
    custody: Custody = Custody(),  # noqa: B008 - immutable
) -> End:
    """Mount, or take a mount over, and serve until the end.

    Args:
        request: what to mount where.
        open_image: what gives the tree.
        on_ready: called once the mount can be used; what it raises ends the mount.
        custody: without anything in it, the mount ends with this process.

    Raises:
        MountError: it could not be mounted.
        Whatever ``open_image`` raises.
    """
    roles.hold(request.folder.processes, roles.DAEMON)
    life = Life(request, custody)
    # A second signal takes its usual effect on leaving the block: nothing may be left then.
    with trio.open_signal_receiver(*SIGNALS) as signals, life:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.end_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(_reassure, life.keeper)
            nursery.start_soon(_give_back)
            with stacker_ahead(life.options) as stacker:
                async with open_image(request.image, life.options) as image:
                    await _serve_image(life, image, stacker, on_ready)
            nursery.cancel_scope.cancel()
    return life.end


async def _serve_image(
    life: Life, image: MountedImage, stacker: Stacker | None, on_ready: Callable[[], None]
) -> None:
    if life.taken_over:
        driver = Driver(life.state.driver or FUSE, life.state.driver_why or "")
    else:
        driver = choose(life.options, image)
    try:
        await _serve_by(driver, life, image, stacker, on_ready)
    except Exception as error:
        failure = first_cause(error)
        if not isinstance(failure, KernelDriverError) or life.options.driver != AUTO:
            raise
        log.warning("%s; serving it by FUSE", failure)
        life.begin_anew()
        await _serve_by(Driver(FUSE, str(failure)), life, image, None, on_ready)


async def _serve_by(
    driver: Driver,
    life: Life,
    image: MountedImage,
    stacker: Stacker | None,
    on_ready: Callable[[], None],
) -> None:
    request = life.request
    life.driven_by(*driver)
    files = image.layer_files if driver.name == KERNEL else None
    if stacker is not None and files is None:
        stacker.end()
    figures = image.figures()
    operations = ImageOperations(
        image.tree if files is None else files.tree,
        request.options.timeout_s,
        figures.size_bytes,
        TIMEOUT_ERRNOS[request.options.on_timeout],
    )
    promotion = None
    if life.options.promote and files is not None:
        promotion = Promotion(life, files)
    elif life.options.promote:
        log.warning("the mount goes on needing its daemon: the kernel does not serve it")
    await _check_root(request.image, operations, image)
    if not life.taken_over:
        _warn_of_notes(figures.layers)

    def announce() -> None:
        life.announce()
        on_ready()
        give_back_freed_memory()

    async def finish() -> None:
        if attached.finish is not None:
            await attached.finish()
            announce()
        if promotion is not None:
            await promotion.run(life.state.loops or {})

    async def document() -> dict[str, object]:
        fuse = operations.counters.as_document(trio.current_time())
        served = {"address": request.options.metrics, "problem": scrapes.problem}
        return {
            **await image.status(),
            "fuse": fuse,
            "metrics": served if request.options.metrics else None,
            "survival": life.survival(),
            "promotion": None if promotion is None else promotion.as_document(),
        }

    scrapes = _open_metrics(life)
    with _listening(request.folder) as listener:
        attached = _attach(life, image, files, stacker)
        server = Server(attached.device, operations)
        life.server = server
        life.end = End.OVER
        if attached.finish is None:
            announce()  # before the first answer: who has one may count on it
        async with trio.open_nursery() as nursery:
            answers = {
                "explain": lambda path: image.explain(os.fsencode(path)),
                "reads": lambda _: image.reads(),
            }
            nursery.start_soon(answer_all, listener, document, answers)
            nursery.start_soon(finish)
            if scrapes.listener is not None:
                nursery.start_soon(_serve_metrics, scrapes.listener, life, image, operations)
            try:
                await server.serve()
            finally:
                life.server = None
            nursery.cancel_scope.cancel()


class _Scrapes(NamedTuple):
    """Where metrics can be had, or why they cannot."""

    listener: trio.SocketListener | None = None
    problem: str | None = None


def _open_metrics(life: Life) -> _Scrapes:
    """Listen for scrapes, if that is wanted.

    Raises:
        MountError: it cannot be done, and the mount is not used yet.
    """
    if life.options.metrics is None:
        return _Scrapes()
    from lazyfs.mount.scraping import listen  # only now: it takes 50 ms

    try:
        return _Scrapes(listen(life.options.metrics))
    except MountError as error:
        if not life.taken_over:
            raise
        log.warning("going on without metrics: %s", error, extra={"event": "metrics_failing"})
        return _Scrapes(problem=str(error))


async def _serve_metrics(
    listener: trio.SocketListener, life: Life, image: MountedImage, operations: ImageOperations
) -> None:
    from lazyfs.mount.metrics import families, process_metrics
    from lazyfs.mount.scraping import Scraped, leave

    mountpoint, restarts = life.request.mountpoint, life.state.restarts
    about = partial(families, mountpoint=mountpoint, restarts=restarts)
    scraped = Scraped(
        lambda: [
            *about(image.figures(), operations.counters, trio.current_time()),
            *process_metrics(),
        ]
    )
    try:
        await scraped.serve(listener)
    finally:
        if life.options.metrics is not None:
            leave(life.options.metrics)


@dataclass(frozen=True, slots=True)
class _Attachment:
    """A connection to the kernel."""

    device: int
    finish: Callable[[], Awaitable[None]] | None = None
    """What is to be done once it is served; then the mount is in its place."""


def _attach(
    life: Life, image: MountedImage, files: LayerFiles | None, stacker: Stacker | None
) -> _Attachment:
    """Mount, or take the mount over.

    Raises:
        MountError: it cannot be done.
    """
    request, options = life.request, life.options
    if life.device is not None:
        try:
            kernelmount.request_again(life.device)
        except OSError as error:
            raise MountError(f"the kernel does not hand the mount over: {error}") from error
        return _Attachment(life.device)
    choice = kernelmount.MountChoice(
        request.image, options.allow_other or os.geteuid() == 0, options.suid, options.dev
    )
    if files is not None:
        connection, folder_mount = kernelmount.mount_apart(choice)
        life.device = connection.descriptor

        async def finish() -> None:
            done = await stack(stacker or Stacker(), request, choice, files, folder_mount)
            life.on_loops(done)
            life.made(image.pin, *_keep(life, connection))

        return _Attachment(connection.descriptor, finish)
    connection = kernelmount.mount(request.mountpoint, choice)
    life.device = connection.descriptor
    life.made(image.pin, *_keep(life, connection))
    if life.state.device is not None:
        read_further_ahead(life.state.device)
    return _Attachment(connection.descriptor)


def _keep(life: Life, connection: kernelmount.Connection) -> tuple[str | None, str | None]:
    """Have the mount kept, if that is of any use; by whom, or why not."""
    if life.keeper is None:
        return None, "served in the foreground, without a supervisor"
    if not connection.can_resend:
        return None, "the kernel cannot send requests again (Linux 6.9 and later can)"
    try:
        life.keeper.keep(connection.descriptor, life.fd_name)
    except MountError as error:
        return None, str(error)
    return life.keeper.name, None


async def _reassure(keeper: Keeper | None) -> None:
    """Tell the keeper from time to time that this process still answers."""
    if keeper is None or keeper.watchdog_s is None:
        return
    while True:
        keeper.alive()
        await trio.sleep(keeper.watchdog_s * WATCHDOG_SHARE)


async def _give_back() -> None:
    """Hold no memory for long that is not in use."""
    while True:
        await trio.sleep(GIVE_BACK_EVERY_S)
        give_back_freed_memory()


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


def _warn_of_notes(layers: Sequence[LayerCounters]) -> None:
    """Say what a user should know about the layers before trusting the mount."""
    for number, layer in enumerate(layers, 1):
        for note in layer.notes:
            log.warning("layer %d: %s", number, note)


@contextlib.contextmanager
def _listening(folder: RuntimeFolder) -> Iterator[trio.SocketListener]:
    """The socket at which the status can be had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        folder.control.unlink(missing_ok=True)  # a daemon before us may have died
        with short_address(folder.control) as address:
            bound.bind(address)
        bound.listen()
        yield trio.SocketListener(trio.socket.from_stdlib_socket(bound))
