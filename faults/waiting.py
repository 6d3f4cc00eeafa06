"""Faults that make readers wait: what the time limit means, and who waits for whom."""

import signal
import socket
import subprocess
import threading
import time

from faults.image import EVER, ONCE, REST, WARM
from faults.model import Fault
from faults.mounts import LAZYFS, READ_WITHIN_S, RIGHT, SHORT_S, in_time, read
from faults.proxy import Shape
from faults.stage import Stage
from tests.support.fake_registry import always, honest
from tests.support.http_server import Reply

LONGER_S = 7.0
"""More than a read with ``SHORT_S`` may take with all its slack."""
MANY_READERS = 50
MOST_REQUESTS = 60
"""At a registry that fails, in some seconds, however many readers there are."""


def other_error(stage: Stage) -> str:
    """--on-timeout etimedout."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", SHORT_S, "--on-timeout", "etimedout") as mount:
        server.registry.breaks = always(Reply(hang=True))
        seen = mount.outcome(EVER)
        server.registry.breaks = honest
        return f"{seen}; mended: {mount.recovers()}"


def for_ever(stage: Stage) -> str:
    """--timeout 0: a registry that is gone for longer than any limit of the other faults."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", "0") as mount:
        mount.outcome(WARM)
        server.stop()
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(mount.one(EVER)))
        reader.start()
        reader.join(LONGER_S)
        waited = reader.is_alive()
        mount.status()
        server.start()
        reader.join(READ_WITHIN_S)
        return f"{'waits' if waited else 'does not wait'}, then {seen[0] if seen else 'HUNG'}"


def restarted(stage: Stage) -> str:
    """A registry is stopped and started again during one read; there is time enough."""
    server = stage.registry()
    with stage.mounted(server.host) as mount:
        mount.outcome(WARM)
        server.stop()
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(mount.outcome()))
        reader.start()
        reader.join(2)
        server.start()
        reader.join(READ_WITHIN_S)
        return seen[0] if seen else "HUNG"


def killed_reader(stage: Stage) -> str:
    """A reader is killed while it waits for a registry that never answers."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        server.registry.breaks = always(Reply(hang=True))
        reader = subprocess.Popen(["cat", mount.root / EVER], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        reader.send_signal(signal.SIGKILL)
        try:
            reader.wait(READ_WITHIN_S)
            seen = "reader ends"
        except subprocess.TimeoutExpired:
            seen = "reader HUNG"
        server.registry.breaks = honest
        return f"{seen}; mended: {mount.recovers()}"


def storm(stage: Stage) -> str:
    """Many readers of different files, and a registry that answers 503."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        mount.outcome(WARM)
        before = len(server.requests)
        server.registry.breaks = always(Reply(503))
        found: set[str] = set()

        def look(number: int) -> None:
            name = (ONCE, EVER, REST)[number % 3]
            found.add(in_time(lambda: "read" if read(mount.root / name, forget=False) else ""))

        readers = [threading.Thread(target=look, args=(n,)) for n in range(MANY_READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        asked = len(server.requests) - before
        server.registry.breaks = honest
        mended = mount.recovers()
    often = "few requests" if asked <= MOST_REQUESTS else f"{asked} requests"
    return f"{' and '.join(sorted(found))}, {often}; mended: {mended}"


def status_in_time(stage: Stage) -> str:
    """``lazyfs status``, while readers wait for a registry that never answers."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        server.registry.breaks = always(Reply(hang=True))
        reader = threading.Thread(target=mount.outcome, args=(EVER,))
        reader.start()
        try:
            done = subprocess.run(
                [*LAZYFS, "status", str(mount.directory)],
                capture_output=True,
                text=True,
                timeout=READ_WITHIN_S,
                check=False,
            )
            waiting = reader.is_alive()
        except subprocess.TimeoutExpired:
            return "status HUNG"
        finally:
            reader.join()
        server.registry.breaks = honest
        mended = mount.recovers()
    good = done.returncode == 0 and server.host in done.stdout
    answer = f"status {'answers' if good else done.stderr}"
    return f"{answer} {'while' if waiting else 'after'} a reader waits; mended: {mended}"


def names_are_not_lost(stage: Stage) -> str:
    """Looking up a name fails for want of metadata; it must not count as absent."""
    image = stage.shared.many
    server = stage.registry(image)
    names = [name for name in image.files if name.startswith("many/")]
    with stage.mounted(server.host, "--timeout", SHORT_S, image=image) as mount:
        server.stop()
        late = names[-3:]
        seen = mount.outcome(*late)
        listed = in_time(lambda: "listed" if len(list((mount.root / "many").iterdir())) else "")
        server.start()
        mended = mount.recovers(*late)
        all_there = len(list((mount.root / "many").iterdir())) == len(names)
    return f"{seen}, {listed}; mended: {mended}, {'all' if all_there else 'not all'} names there"


def slow_start(stage: Stage) -> str:
    """The registry is slow: each answer takes a second."""
    server = stage.registry()
    server.registry.breaks = lambda request, reply: Reply(
        reply.status, reply.body, reply.headers, wait_s=1.0
    )
    with stage.mounted(server.host) as mount:
        return mount.outcome()


def never_accepts(stage: Stage) -> str:
    """Connections are taken by the kernel, and nothing is done with them."""
    proxy = stage.proxy(stage.registry().host)
    with stage.mounted(proxy.host, "--timeout", SHORT_S) as mount:
        mount.outcome(WARM)
        proxy.shape = Shape(swallow=True, stall_at=0)
        seen = mount.outcome(EVER)
        proxy.shape = Shape()
        return f"{seen}; mended: {mount.recovers()}"


def full_backlog(stage: Stage) -> str:
    """Connections are not even made: packets to the port are dropped."""
    server = stage.registry()
    port = int(server.host.rpartition(":")[2])
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        mount.outcome(WARM)
        server.stop()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(0)
            waiting = []
            for _ in range(4):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                waiting.append(one)
            seen = mount.outcome(EVER)
            for one in waiting:
                one.close()
        server.start()
        return f"{seen}; mended: {mount.recovers()}"


FAULTS = (
    Fault(
        "wait-connect", "connections are never made (connect)", "EIO; mended: right", full_backlog
    ),
    Fault(
        "wait-accept",
        "connections are made, and nobody speaks",
        "EIO; mended: right",
        never_accepts,
    ),
    Fault("wait-slow", "each answer takes a second", RIGHT, slow_start),
    Fault("wait-restart", "the registry is stopped and started during a read", RIGHT, restarted),
    Fault(
        "wait-errno", "no answer, --on-timeout etimedout", "ETIMEDOUT; mended: right", other_error
    ),
    Fault(
        "wait-for-ever", "the registry is gone for 7 s, --timeout 0", "waits, then right", for_ever
    ),
    Fault(
        "wait-killed",
        "a reader is killed while it waits",
        "reader ends; mended: right",
        killed_reader,
    ),
    Fault("wait-storm", "503, and fifty readers", "EIO, few requests; mended: right", storm),
    Fault(
        "wait-status",
        "no answer, and lazyfs status is asked",
        "status answers while a reader waits; mended: right",
        status_in_time,
    ),
    Fault(
        "wait-names",
        "names whose metadata is not there are looked up",
        "EIO, EIO; mended: right, all names there",
        names_are_not_lost,
    ),
)
