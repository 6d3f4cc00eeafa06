"""Faults of the processes behind a mount, and mounts without their registry."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial

from faults.image import EVER, ONCE, REST, WARM
from faults.model import Fault
from faults.mounts import READ_WITHIN_S, RIGHT, SHORT_S, FaultError, Mount, in_time
from faults.stage import Stage
from lazyfs.mount import roles
from lazyfs.mount.census import census
from tests.support.fake_registry import always, honest, sha256
from tests.support.http_server import Reply
from tests.support.lazy_mounts import lazyfs
from tests.support.mounting import is_mounted, kill, process_of, wait_for_end

KILLS = 5
REACHES_S = 10.0
PAUSE_S = 0.05


def process(mount: Mount, role: int) -> int:
    """The process that has a role now; it is waited for."""
    ends = time.monotonic() + REACHES_S
    while time.monotonic() < ends:
        if found := process_of(mount.folder, role):
            return found
        time.sleep(PAUSE_S)
    raise FaultError(f"no process has the role {role}: {mount.log()}")


def kill_and_wait(pid: int) -> None:
    """SIGKILL, until it is gone."""
    kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)


def state(mount: Mount) -> str:
    """What ``lazyfs status`` calls the mount."""
    [document] = census(os.fspath(mount.directory))
    return str(document["state"])


@contextlib.contextmanager
def reading(mount: Mount, seen: list[str], *names: str) -> Iterator[threading.Thread]:
    """Read beside the block; what came of it is known after it."""
    reader = threading.Thread(target=lambda: seen.append(mount.outcome(*names)))
    reader.start()
    yield reader
    reader.join()


def killed(stage: Stage) -> str:
    """The daemon is killed again and again while files are read."""
    server = stage.registry()
    with stage.kept(server.host) as (mount, _):
        seen: list[str] = []
        for _ in range(KILLS):
            with reading(mount, seen, ONCE, EVER, REST):
                kill_and_wait(process(mount, roles.DAEMON))
        seen.append(mount.outcome())
        alive = state(mount)
    return f"{' and '.join(sorted(set(seen)))}, {alive}"


def killed_without_registry(stage: Stage) -> str:
    """All is cached, the registry is gone, and then the daemon dies."""
    server = stage.registry()
    with stage.kept(server.host, "--timeout", SHORT_S) as (mount, _):
        before = mount.outcome()
        server.stop()
        kill_and_wait(process(mount, roles.DAEMON))
        return f"{before} then {mount.outcome()}"


def killed_while_waiting(stage: Stage) -> str:
    """The daemon is killed while a reader waits for a registry that does not answer."""
    server = stage.registry()
    with stage.kept(server.host) as (mount, _):
        server.registry.breaks = always(Reply(hang=True))
        seen: list[str] = []
        with reading(mount, seen, EVER) as reader:
            reader.join(1)
            kill_and_wait(process(mount, roles.DAEMON))
            server.registry.breaks = honest
        return seen[0]


def stopped(stage: Stage) -> str:
    """The daemon is stopped for some time (SIGSTOP), as by a debugger or a frozen cgroup."""
    server = stage.registry()
    with stage.kept(server.host) as (mount, _):
        mount.outcome(WARM)
        daemon = process(mount, roles.DAEMON)
        seen: list[str] = []
        os.kill(daemon, signal.SIGSTOP)
        try:
            with reading(mount, seen, EVER) as reader:
                told = in_time(partial(state, mount))
                reader.join(0.5)
                waits = reader.is_alive()
                os.kill(daemon, signal.SIGCONT)
        finally:
            kill(daemon, signal.SIGCONT)
    return f"status {told}, reader {'waits' if waits else 'does not wait'}, then {seen[0]}"


def supervisor_killed(stage: Stage) -> str:
    """Who keeps the mount is killed, the daemon lives."""
    server = stage.registry()
    with stage.kept(server.host) as (mount, _):
        mount.outcome(WARM)
        kill_and_wait(process(mount, roles.SUPERVISOR))
        seen = mount.outcome()
        [document] = census(os.fspath(mount.directory))
        survival = document["survival"]
        assert isinstance(survival, dict)
        return f"{seen}, {'and says so' if not survival['survives'] else 'does not say so'}"


def all_killed(stage: Stage) -> str:
    """Both are killed: the mount is dead, found, cleaned, and can be made again."""
    server = stage.registry()
    with stage.kept(server.host) as (mount, background):
        mount.outcome(WARM)
        background.kill()
        dead, told = mount.outcome(EVER), state(mount)
        lazyfs("umount", mount.directory)
        gone = not is_mounted(mount.directory)
    with stage.mounted(server.host) as again:
        return f"{dead}, status {told}, {'cleaned' if gone else 'left'}, again: {again.outcome()}"


def terminated_while_waiting(stage: Stage) -> str:
    """The daemon is asked to end while a reader waits for a registry that never answers."""
    server = stage.registry()
    seen: list[str] = []
    with stage.mounted(server.host, "--timeout", "0") as mount:
        server.registry.breaks = always(Reply(hang=True))
        reader = threading.Thread(target=lambda: seen.append(mount.one(EVER)))
        reader.start()
        reader.join(0.5)
        waits = reader.is_alive()
    reader.join(READ_WITHIN_S)
    freed = seen and seen[0] not in ("HUNG", RIGHT)
    waited = "waits" if waits else "does not wait"
    return f"reader {waited}, {'freed' if freed else 'not freed'}, mount ended"


def twice(stage: Stage) -> str:
    """A second mount in the same place."""
    server = stage.registry()
    with stage.kept(server.host) as (mount, _):
        done = lazyfs(
            "mount",
            "--cache-dir",
            stage.cache,
            f"{server.host}/faults/image:v1",
            mount.directory,
            check=False,
        )
        refused = done.returncode == 1 and "already has a lazyfs mount" in done.stderr
        return f"{'refused' if refused else done.stderr}, first one: {mount.outcome()}"


def without_registry(digest: bool, stage: Stage) -> str:
    """Everything is cached, the registry is gone: a fresh process mounts and reads all."""
    server = stage.registry()
    name = f"{server.host}/faults/image" + (f"@{sha256(stage.image.manifest)}" if digest else ":v1")
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        mount.outcome()
    server.stop()
    with stage.mounted(name, "--timeout", SHORT_S) as mount:
        note = mount.status()["resolution"]
        return f"{mount.outcome()}, {'said so' if note else 'nothing said'}"


def refused_without_registry(stage: Stage) -> str:
    """Half is cached, the registry is gone: what is cached can be read, the rest is EIO."""
    server = stage.registry()
    with stage.mounted(server.host) as mount:
        mount.outcome(WARM)
    server.stop()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        seen, kept = mount.outcome(EVER), mount.outcome(WARM)
        server.start()
        return f"cached {kept}, rest {seen}; mended: {mount.recovers()}"


FAULTS = (
    Fault("daemon-killed", "SIGKILL, five times while files are read", "right, mounted", killed),
    Fault(
        "daemon-killed-offline",
        "SIGKILL, all is cached and the registry is gone",
        "right then right",
        killed_without_registry,
    ),
    Fault(
        "daemon-killed-waiting",
        "SIGKILL while a reader waits for the registry",
        RIGHT,
        killed_while_waiting,
    ),
    Fault(
        "daemon-stopped",
        "SIGSTOP, then SIGCONT",
        "status silent, reader waits, then right",
        stopped,
    ),
    Fault(
        "supervisor-killed",
        "SIGKILL to who keeps the mount",
        "right, and says so",
        supervisor_killed,
    ),
    Fault(
        "all-killed",
        "SIGKILL to supervisor and daemon",
        "ENOTCONN, status dead, cleaned, again: right",
        all_killed,
    ),
    Fault(
        "daemon-ends",
        "SIGTERM while a reader waits, --timeout 0",
        "reader waits, freed, mount ended",
        terminated_while_waiting,
    ),
    Fault("mount-twice", "a second mount in the same place", "refused, first one: right", twice),
    Fault(
        "offline-tag",
        "all is cached, the registry is gone, mounted by tag",
        "right, said so",
        partial(without_registry, False),
    ),
    Fault(
        "offline-digest",
        "all is cached, the registry is gone, mounted by digest",
        "right, nothing said",
        partial(without_registry, True),
    ),
    Fault(
        "offline-half",
        "some is cached, the registry is gone, and comes back",
        "cached right, rest EIO; mended: right",
        refused_without_registry,
    ),
)
