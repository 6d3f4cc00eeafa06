"""The registry is stopped, and started again, while a whole tree is being read."""

import contextlib
import fcntl
import hashlib
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.converted import push_and_convert
from tests.support.lazy_mounts import LazyMount, mounted
from tests.support.mounting import COMMAND_WITHIN_S, needs_fuse
from tests.support.registry_server import running_registry
from tests.support.survival import kill_daemon
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

FILES = 240
LINES_FIRST = 10
LEAST_PIPE_BYTES = 4096
"""Some 45 lines: as far as the command gets without us."""
FIRST_FAILURES = 3
MORE_FAILURES = 6
"""More than a host may have that never worked (``registry.attempts.FIRST_CONTACT_TRIES``)."""
MAX_ASKING = 500


def free_port() -> int:
    """One that nobody listens at, and that no client is given: nobody takes it meanwhile."""
    for port in random.sample(range(12_000, 32_000), 100):
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def contents() -> dict[str, bytes]:
    chance = random.Random(4)
    return {
        f"d{number % 5}/file-{number:03}": chance.randbytes(chance.randrange(1, 120_000))
        for number in range(FILES)
    }


def wait_for_failures(mount: LazyMount, count: int) -> None:
    """Return when the daemon has asked the registry in vain, some times."""
    for _ in range(MAX_ASKING):
        hosts = mount.status().get("hosts", [])  # none while the next daemon starts
        if any(host["failures"] >= count for host in hosts):
            return
    raise AssertionError(mount.status())


@contextlib.contextmanager
def killed_in_the_end(process: "subprocess.Popen[str]") -> Iterator[None]:
    """So that a test that fails does not wait for it."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("timeout", "kill"),
    [("120s", False), ("0", True)],
    ids=["long", "killed"],
)
def test_it_ends_right_only_later(tmp_path: Path, timeout: str, kill: bool):
    files, port = contents(), free_port()
    with contextlib.ExitStack() as first:
        registry = first.enter_context(running_registry(tmp_path / "registry", port=port))
        write_layout(tmp_path / "layout", "tar", [files])
        options = ("--chunk-size", "64KiB")
        image = push_and_convert(
            tmp_path / "layout", "tar", "outage", registry, tmp_path / "raw", *options
        )
        running = first.pop_all()
    cache = ("--cache-dir", tmp_path / "cache", "--timeout", timeout)
    command = "find . -type f | LC_ALL=C sort | xargs sha256sum"
    with running, mounted(image.name, tmp_path / "mnt", *cache) as mount:
        with (
            subprocess.Popen(
                ["sh", "-c", command], cwd=mount.path, stdout=subprocess.PIPE, text=True
            ) as reading,
            killed_in_the_end(reading),
        ):
            assert reading.stdout is not None
            fcntl.fcntl(reading.stdout, fcntl.F_SETPIPE_SZ, LEAST_PIPE_BYTES)
            said = [reading.stdout.readline() for _ in range(LINES_FIRST)]
            registry.stop()
            taking = threading.Thread(target=said.extend, args=(reading.stdout,))
            taking.start()
            wait_for_failures(mount, FIRST_FAILURES)
            if kill:
                kill_daemon(mount.folder)
                wait_for_failures(mount, MORE_FAILURES)
            assert reading.poll() is None
            with running_registry(tmp_path / "registry", port=port):
                assert reading.wait(COMMAND_WITHIN_S) == 0
                taking.join()
        assert mount.failures() == {}
    expected = [
        f"{hashlib.sha256(data).hexdigest()}  ./{name}\n" for name, data in sorted(files.items())
    ]
    assert said == expected
