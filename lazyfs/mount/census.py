"""What is mounted and how it does: runtime folders, the kernel's list, the daemons' answers."""

import dataclasses
import re
import time

from lazyfs.errors import MountError
from lazyfs.mount import roles
from lazyfs.mount.control import ask
from lazyfs.mount.mountpoint import resolve
from lazyfs.mount.runtime import KnownMount, known_mounts
from lazyfs.mount.supervision import SERVING


def census(directory: str | None) -> list[dict[str, object]]:
    """One document for each mount, or for the one on ``directory``.

    The keys are those of ``MountState``, ``uptime_s``, ``state`` (``mounted``, ``starting``,
    ``detached``: unmounted but in use, ``restarting``: its daemon died and another one is about
    to take over, ``dead``: its processes are gone, ``silent``: its daemon does not answer),
    ``problem``, ``survival``, and what the daemon answers.

    Raises:
        MountError: nothing is known of ``directory``.
    """
    mounts = known_mounts()
    if directory is not None:
        mountpoint = resolve(directory)
        mounts = [mount for mount in mounts if mount.state.mountpoint == mountpoint]
        if not mounts:
            raise MountError(f"{directory} is not a lazyfs mount")
    return [_document(mount) for mount in mounts]


def _document(mount: KnownMount) -> dict[str, object]:
    document = dataclasses.asdict(mount.state)
    document["uptime_s"] = max(0.0, time.time() - mount.state.started_s)
    document["problem"] = None
    document["survival"] = _survival(mount)
    daemon = roles.holder(mount.folder.processes, roles.DAEMON)
    report = mount.folder.supervisor_report()
    if mount.local and not mount.alive:
        return document | {"state": "local"}
    if not mount.alive:
        problem = "the daemon has died; lazyfs umount tidies up"
        if report is None and mount.state.kept_by is not None:
            problem = f"the daemon has died; {mount.state.kept_by} should start another one now"
        return document | {"state": "dead", "problem": (report and report.problem) or problem}
    if mount.state.device is None:
        return document | {"state": "starting"}
    if report is not None and (daemon is None or report.phase != SERVING):
        return document | {
            "state": "restarting",
            "problem": f"the last daemon {report.last_end or 'has died'}",
        }
    state = "mounted" if mount.mounted else "detached"
    try:
        answer = ask(mount.folder.control)
    except MountError as error:
        return document | {"state": "silent", "problem": str(error)}
    survival = answer.get("survival", document["survival"])
    trouble = answer.get("problem")
    if isinstance(count := answer.get("layer_directories"), int) and count:
        document["lowerdir"] = lower_directories(mount.state.mountpoint, count)
    return {**answer, **document, "problem": trouble, "survival": survival, "state": state}


def lower_directories(mountpoint: str, count: int) -> str:
    """What overlayfs is to be told of layers that are mounted side by side: the topmost first.

    Args:
        mountpoint: where they are mounted.
        count: how many there are.
    """
    escaped = escape_overlay_path(mountpoint)
    return ":".join(f"{escaped}/{number}" for number in reversed(range(count)))


def escape_overlay_path(path: str) -> str:
    """A path as options of overlayfs have it (``fs/overlayfs/params.c``)."""
    return re.sub(r"([\\:,])", r"\\\1", path)


def _survival(mount: KnownMount) -> dict[str, object]:
    """Whether a mount survives its daemon, as far as its folder tells."""
    state = mount.state
    why = state.not_kept or ("not known yet" if state.kept_by is None else None)
    return {
        "survives": why is None,
        "why": why or f"{state.kept_by} keeps it",
        "restarts": state.restarts,
    }
