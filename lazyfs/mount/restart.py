"""Replacing the daemon of a mount that is in use, for example after an upgrade of lazyfs."""

import contextlib
import os
import signal
import time

from lazyfs.errors import MountError
from lazyfs.mount import roles
from lazyfs.mount.mountpoint import resolve
from lazyfs.mount.runtime import KnownMount, known_mounts
from lazyfs.mount.supervision import OUR_SUPERVISOR, RESTART_SIGNAL

RESTART_WITHIN_S = 120.0
LOOK_EVERY_S = 0.05


def restart(directory: str) -> None:
    """Return when another daemon serves the mount on ``directory``; its users notice a pause.

    Raises:
        MountError: it is no mount of ours, or cannot be restarted, or was not in time.
    """
    mountpoint = resolve(directory)
    known = next((mount for mount in known_mounts() if _is_it(mount, mountpoint)), None)
    if known is None:
        raise MountError(f"{directory} has no lazyfs mount that is alive")
    if known.state.kept_by is None:
        why = known.state.not_kept or "it is only being mounted"
        raise MountError(f"{directory} cannot be restarted, only unmounted and mounted: {why}")
    _ask(directory, known)
    _wait(directory, known)


def _is_it(mount: KnownMount, mountpoint: str) -> bool:
    return mount.state.mountpoint == mountpoint and mount.alive and mount.mounted


def _ask(directory: str, known: KnownMount) -> None:
    """Tell the supervisor, or where systemd keeps the mount, the daemon itself."""
    for role in (roles.SUPERVISOR, roles.DAEMON):
        process = roles.open_holder(known.folder.processes, role)
        if process is None:
            if role == roles.SUPERVISOR and known.state.kept_by == OUR_SUPERVISOR:
                raise MountError(
                    f"{directory} cannot be restarted, only unmounted and mounted: "
                    "its supervisor has died"
                )
            continue
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, RESTART_SIGNAL)
        finally:
            os.close(process)
        return
    raise MountError(f"{directory}: its daemon has just died; lazyfs umount tidies up")


def _wait(directory: str, known: KnownMount) -> None:
    deadline_s = time.monotonic() + RESTART_WITHIN_S
    while time.monotonic() < deadline_s:
        state = known.folder.read_state()
        if state is not None and state.restarts > known.state.restarts:
            return
        report = known.folder.supervisor_report()
        if state is None or (report is not None and not known.folder.is_alive()):
            why = report.problem if report is not None else None
            raise MountError(f"{directory}: {why or 'the mount has ended'}")
        time.sleep(LOOK_EVERY_S)
    raise MountError(f"{directory}: no new daemon within {RESTART_WITHIN_S:g} s")
