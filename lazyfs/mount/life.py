"""How long a daemon serves its mount, and what becomes of the mount then."""

import contextlib
import enum
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import trio

from lazyfs.errors import MountError
from lazyfs.fuse.server import GRACE_S, Server
from lazyfs.mount.keeper import Keeper
from lazyfs.mount.loops import are_local
from lazyfs.mount.mountinfo import current_mounts, top_mount
from lazyfs.mount.request import MountRequest
from lazyfs.mount.runtime import MountState
from lazyfs.mount.service import descriptor_name
from lazyfs.mount.supervision import ENDING_SIGNALS, HANDED_OVER, LOCAL, RESTART_SIGNAL
from lazyfs.mount.unmount import detach

SIGNALS = (*ENDING_SIGNALS, RESTART_SIGNAL)

log = logging.getLogger(__name__)


class End(enum.Enum):
    """How a daemon ended."""

    UNBORN = "it did not come to a mount"
    OVER = "the mount is gone"
    HANDED_OVER = "another daemon shall go on"
    LOCAL = "the mount needs no daemon any more"


EXIT_STATUS = {End.HANDED_OVER: HANDED_OVER, End.LOCAL: LOCAL}
"""Of the daemon, by how it ended; else 0."""


@dataclass(frozen=True, slots=True)
class Custody:
    """Who keeps the mount, and the mount itself where it is to be taken over."""

    keeper: Keeper | None = None
    device: int | None = None


class Life:
    """One daemon's part of the life of a mount.

    Leaving it as a context takes the mount down, unless another daemon is to go on.
    """

    def __init__(self, request: MountRequest, custody: Custody) -> None:
        """Begin, with the mount of ``custody`` if there is one.

        Raises:
            MountError: what is known of that mount cannot be read.
        """
        self.request = request
        self.keeper = custody.keeper
        self.options = request.options
        self.end = End.UNBORN
        self.server: Server | None = None
        """While it serves."""
        self.device = custody.device
        """Descriptor of the mount, once there is one."""
        self.taken_over = custody.device is not None
        self.state = MountState(
            request.mountpoint,
            request.image,
            os.getpid(),
            time.time(),
            cache_dir=os.fspath(request.options.cache_dir),
        )
        if self.taken_over:
            self.end = End.OVER
            before = request.folder.read_state()
            if before is None or before.device is None:
                raise MountError(f"nothing is known of the mount in {request.folder.path}")
            self.state = replace(before, pid=os.getpid(), restarts=before.restarts + 1)
            self.options = replace(request.options, pin=before.pin)
        self._announced = self.taken_over

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        died = kind is not None and issubclass(kind, Exception)
        kept = self.state.kept_by is not None and self._announced
        if self.end is End.HANDED_OVER or (died and kept):
            return
        if kind is None and are_local(self.state.loops) and self.is_in_place():
            # The kernel has ended our FUSE mount, though DIR is there: nobody needs it any more.
            self.end = End.LOCAL
            return
        if self.keeper is not None:
            self.keeper.drop(self.fd_name)
        if self.device is not None:
            os.close(self.device)
            if self.is_in_place():
                with contextlib.suppress(MountError):
                    detach(self._mountpoint(), lazy=True)
        self.request.folder.remove()

    @property
    def fd_name(self) -> str:
        """Under which the keeper knows the mount."""
        return descriptor_name(self.request.folder)

    def on_loops(self, loops: dict[str, str]) -> None:
        """Note the loop devices that were made for the mount."""
        self.state = replace(self.state, loops=loops)

    def driven_by(self, name: str, why: str) -> None:
        """Note what serves the files."""
        self.state = replace(self.state, driver=name, driver_why=why)

    def begin_anew(self) -> None:
        """Forget a mount that did not come to be, to make another one."""
        if self.device is not None:
            os.close(self.device)
        self.device, self.end, self.server = None, End.UNBORN, None

    def made(self, pin: str | None, kept_by: str | None, not_kept: str | None) -> None:
        """Note that there is a mount, and what is known about it."""
        top = top_mount(self.request.mountpoint, current_mounts())
        device = None if top is None else top.device
        self.state = replace(self.state, device=device, pin=pin, kept_by=kept_by, not_kept=not_kept)

    def is_in_place(self) -> bool:
        """Whether our mount, or the overlay that covers it, is still there, on top."""
        state = self._noted()
        top = top_mount(state.mountpoint, current_mounts())
        return top is not None and top.device == state.device

    def _mountpoint(self) -> str:
        return self._noted().mountpoint

    def _noted(self) -> MountState:
        """The state as the runtime folder has it: ``lazyfs.mount.writable`` changes it there."""
        noted = self.request.folder.read_state() if self._announced else None
        return noted or self.state

    def announce(self) -> None:
        """Tell all who want to know that the mount can be used."""
        self.request.folder.write_state(self.state)
        self._announced = True
        event = "taken_over" if self.taken_over else "mounted"
        extra = {"event": event, "restarts": self.state.restarts}
        log.info("serving %s on %s", self.request.image, self.request.mountpoint, extra=extra)
        if self.keeper is not None:
            self.keeper.ready()

    def survival(self) -> dict[str, object]:
        """Whether the mount survives this daemon, for ``lazyfs status``."""
        why = self.state.not_kept
        if why is None and self.keeper is not None and self.keeper.is_gone():
            why = f"{self.keeper.name} has died"
        by = f"{self.state.kept_by} keeps it"
        return {"survives": why is None, "why": why or by, "restarts": self.state.restarts}

    def _needed_because(self) -> str | None:
        """Why no other daemon could go on; None if one could."""
        if self.server is None:
            return "not serving yet"
        survival = self.survival()
        return None if survival["survives"] else str(survival["why"])

    async def end_on_signal(
        self, signals: AsyncIterator[int], everything: trio.CancelScope
    ) -> None:
        """Let requests in hand be answered, for a moment, then end what is left."""
        async for number in signals:
            if number == RESTART_SIGNAL and (why := self._needed_because()):
                log.warning("not restarting: %s", why)
                continue
            if number == RESTART_SIGNAL:
                log.info("handing over to another daemon", extra={"event": "handing_over"})
                self.end = End.HANDED_OVER
            else:
                extra = {"event": "ending"}
                log.info("ending: %s", signal.Signals(number).name, extra=extra)
                await self._unmount()
            if self.server is not None:  # unmounting alone may have ended it
                self.server.stop()
                await trio.sleep(GRACE_S)
            everything.cancel()
            return

    async def _unmount(self) -> None:
        """Unmount, unless somebody uses the mount: then say who does."""
        if not self.is_in_place():
            return
        try:
            await trio.to_thread.run_sync(
                lambda: detach(self._mountpoint(), lazy=False), abandon_on_cancel=True
            )
        except MountError as error:
            log.warning("%s; ending it nevertheless", error)
