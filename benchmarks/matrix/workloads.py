"""What is done in each image and timed. To add one: a function and a line in ``WORKLOADS``."""

import contextlib
import http.client
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.matrix.images import FILES, FILES_IN_A_FOLDER
from benchmarks.shaper import LOOPBACK
from benchmarks.system import BenchmarkError, run

INSIDE = (
    'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && '
    'unset PYTHONDONTWRITEBYTECODE && exec chroot "$0" "$@"'
)
"""A shell's words: what programs expect to be there, in mounts that end with them."""
ANSWER_WITHIN_S = 600
ASK_EVERY_S = 0.01
SERVER_END_S = 10
BUILD_FILES = 2000
SEED = 7
NODE_SERVER = "require('http').createServer((q,r)=>r.end('x')).listen({port},'127.0.0.1')"


@dataclass(frozen=True)
class Workload:
    """Something that is done in a tree."""

    name: str
    run: Callable[[Path], None]
    is_start: bool = False
    """A program begins: this is what profiles are recorded of."""


def inside(root: Path, *command: str) -> list[str]:
    """A command that runs another one in a tree."""
    shell = ["sh", "-ec", INSIDE, str(root), *command]
    return ["unshare", "--mount", "--propagation", "private", *shell]


def program(*command: str) -> Callable[[Path], None]:
    """A workload: run a program to its end."""

    def work(root: Path) -> None:
        run(*inside(root, *command))

    return work


def first_answer(*command: str) -> Callable[[Path], None]:
    """A workload: start a server, and wait for its first answer; ``{port}`` is where it listens."""

    def work(root: Path) -> None:
        with socket.create_server((LOOPBACK, 0)) as reserved:
            port = reserved.getsockname()[1]
        words = inside(root, *(word.replace("{port}", str(port)) for word in command))
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                _wait_for_answer(server, port)
            finally:
                server.send_signal(signal.SIGKILL)
                server.wait(SERVER_END_S)

    return work


def _wait_for_answer(server: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < give_up and server.poll() is None:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=ANSWER_WITHIN_S)
        with contextlib.closing(connection), contextlib.suppress(ConnectionRefusedError):
            connection.request("GET", "/")
            status = connection.getresponse().status
            if status != http.HTTPStatus.OK:
                raise BenchmarkError(f"the server answered {status}")
            return
        time.sleep(ASK_EVERY_S)
    raise BenchmarkError("the server did not answer")


def find(root: Path) -> None:
    """List every directory."""
    run("find", root, "-printf", "")


def grep(folder: str, root: Path) -> None:
    """Read every file of a folder."""
    run("grep", "-rc", "no such words, surely", root / folder, check=False)


def build(root: Path) -> None:
    """Read files as a compiler does: whole packages, each file after its neighbour's attributes."""
    folders = FILES // FILES_IN_A_FOLDER
    for number in random.Random(SEED).sample(range(folders), BUILD_FILES // FILES_IN_A_FOLDER):
        folder = root / f"src/package-{number // 20}/module-{number % 20}"
        for file in sorted(folder.iterdir()):
            file.stat()
            file.read_bytes()


IMPORT = "import scipy.stats, pandas"
WORKLOADS: Mapping[str, Sequence[Workload]] = {
    "numpy": (
        Workload("import", program("python3", "-c", "import numpy"), is_start=True),
        Workload("find", find),
    ),
    "python": (
        Workload("import", program("python3", "-c", IMPORT), is_start=True),
        Workload(
            "http",
            first_answer(
                "python3", "-m", "http.server", "--bind", LOOPBACK, "-d", "/srv", "{port}"
            ),
            is_start=True,
        ),
        Workload("grep", partial(grep, "usr/lib/python3/dist-packages/pandas/core")),
    ),
    "node": (
        Workload("version", program("node", "--version"), is_start=True),
        Workload("http", first_answer("node", "-e", NODE_SERVER), is_start=True),
    ),
    "java": (Workload("version", program("java", "--version"), is_start=True),),
    "files": (Workload("find", find), Workload("build", build, is_start=True)),
}


def of_image(name: str, *, starts_only: bool = False) -> Sequence[Workload]:
    """The workloads of an image."""
    return [workload for workload in WORKLOADS[name] if workload.is_start or not starts_only]
