"""What is mounted and how it does: runtime folders, the kernel's list, the daemons' answers."""

import dataclasses
import time

from lazyfs.errors import MountError
from lazyfs.mount.control import ask
from lazyfs.mount.mountpoint import resolve
from lazyfs.mount.runtime import KnownMount, known_mounts


def census(directory: str | None) -> list[dict[str, object]]:
    """One document for each mount, or for the one on ``directory``.

    The keys are those of ``MountState``, ``uptime_s``, ``state`` (``mounted``, ``starting``,
    ``detached``: unmounted but in use, ``dead``: its daemon is gone, ``silent``: its daemon
    does not answer), ``problem``, and what the daemon answers.

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
    if not mount.alive:
        problem = "the daemon has died; lazyfs umount tidies up"
        return document | {"state": "dead", "problem": problem}
    if mount.state.device is None:
        return document | {"state": "starting"}
    state = "mounted" if mount.mounted else "detached"
    try:
        answer = ask(mount.folder.control)
    except MountError as error:
        return document | {"state": "silent", "problem": str(error)}
    return {**answer, **document, "problem": answer.get("problem"), "state": state}
