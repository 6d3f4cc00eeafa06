"""Who keeps the mount's descriptor when this daemon dies: our supervisor, or systemd.

Both are told what happens by the protocol of sd_notify(3). systemd gives kept descriptors back as
sd_listen_fds(3) has it, our supervisor as an argument.
"""

import array
import contextlib
import logging
import os
import select
import socket
from collections.abc import Mapping

from lazyfs.errors import MountError
from lazyfs.mount.supervision import OUR_SUPERVISOR, WATCHDOG_S

FIRST_LISTEN_FD = 3
"""``SD_LISTEN_FDS_START``."""

SEND_WITHIN_S = 5.0
MICROSECONDS = 1_000_000

log = logging.getLogger(__name__)


class Keeper:
    """The daemon's end of the line to its keeper."""

    def __init__(self, name: str, line: socket.socket, watchdog_s: float | None) -> None:
        """Speak to ``name`` over ``line``, at least once in ``watchdog_s`` seconds."""
        self.name = name
        self.watchdog_s = watchdog_s
        self._line = line
        line.settimeout(SEND_WITHIN_S)

    def keep(self, device: int, name: str) -> None:
        """Have a copy of the descriptor ``device`` kept under a name.

        Raises:
            MountError: it is not kept.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [device]))]
        # FDPOLL: systemd would drop a descriptor as soon as it is in error, before we look.
        text = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0"
        try:
            self._line.sendmsg([text.encode()], rights)
        except OSError as error:
            raise MountError(f"{self.name} does not keep the mount: {error}") from error

    def drop(self, name: str) -> None:
        """Have what is kept under a name closed."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def ready(self) -> None:
        """Say that the mount can be used."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}")

    def alive(self) -> None:
        """Say that we still answer."""
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in one line how it goes."""
        self._tell("STATUS=" + text.replace("\n", "; "))

    def is_gone(self) -> bool:
        """Whether nobody listens any more, so that nobody keeps anything."""
        watch = select.poll()
        watch.register(self._line, 0)
        return bool(watch.poll(0))

    def _tell(self, text: str) -> None:
        """Send a message if that is possible at once: it must not delay any reader."""
        try:
            self._line.send(text.encode(), socket.MSG_DONTWAIT)
        except OSError as error:
            log.debug("%s was not told %s: %s", self.name, text, error)


def our_supervisor(descriptor: int) -> Keeper:
    """The supervisor at the other end of ``descriptor``."""
    line = socket.socket(fileno=descriptor)
    line.set_inheritable(False)
    return Keeper(OUR_SUPERVISOR, line, WATCHDOG_S)


def systemd(environment: Mapping[str, str]) -> Keeper | None:
    """systemd, if it started this process as a service that tells it how it goes.

    Raises:
        MountError: it did, but cannot be reached.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return None
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        line.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError as error:
        line.close()
        raise MountError(f"systemd does not listen at {address}: {error}") from error
    watchdog_s = None
    if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        with contextlib.suppress(KeyError, ValueError):
            watchdog_s = int(environment["WATCHDOG_USEC"]) / MICROSECONDS
    return Keeper("systemd", line, watchdog_s)


def kept_by_systemd(environment: Mapping[str, str]) -> dict[str, int]:
    """The descriptors that systemd has kept for this process, by name; not inherited further."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    try:
        count = int(environment.get("LISTEN_FDS", "0"))
    except ValueError:
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    kept = {}
    for position, descriptor in enumerate(range(FIRST_LISTEN_FD, FIRST_LISTEN_FD + count)):
        os.set_inheritable(descriptor, False)
        kept[names[position] if position < len(names) else str(position)] = descriptor
    return kept
