"""``examples/demo.sh`` works for everybody, and cleans up whatever happens."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lazyfs.mount.mountinfo import current_mounts
from tests.support.mounting import needs_fuse
from tests.support.nobody import nobody

pytestmark = [pytest.mark.mount, needs_fuse]

DEMO = Path(__file__).parents[2] / "examples/demo.sh"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
DEMO_WITHIN_S = 180


def assert_complete(output: str) -> None:
    for said in ("$ lazyfs convert", "$ lazyfs mount", "the same as the original", "gone\n"):
        assert said in output
    shares = [line for line in output.splitlines() if line.startswith("fetched ") and "%" in line]
    assert [float(line.split()[-1].rstrip("%")) < 20 for line in shares] == [True] * 3


def demo_mounts(folder: Path) -> list[str]:
    mounts = current_mounts()
    return [entry.mountpoint for entry in mounts if entry.mountpoint.startswith(f"{folder}/")]


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_as_root(folder: Path):
    done = subprocess.run(
        [DEMO],
        env={**os.environ, "PATH": PATH, "TMPDIR": os.fspath(folder)},
        capture_output=True,
        text=True,
        timeout=DEMO_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_complete(done.stdout)
    assert list(folder.iterdir()) == []


def test_as_a_plain_user():
    with nobody() as user:
        done = user.run(DEMO, PATH=PATH)
        assert done.returncode == 0, done.stderr
        assert_complete(done.stdout)
        assert [path.name for path in user.home.iterdir()] == ["lazyfs"]


@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [
        ("$ lazyfs convert", signal.SIGINT, 130),
        ("$ lazyfs mount", signal.SIGINT, 130),
        ("$ lazyfs mount", signal.SIGTERM, 143),
        ("$ wc", signal.SIGINT, 130),
    ],
)
def test_interrupted(moment: str, number: signal.Signals, status: int, folder: Path):
    process = subprocess.Popen(
        [DEMO],
        env={**os.environ, "PATH": PATH, "TMPDIR": os.fspath(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    with process.stdout as output:
        for line in output:
            said += line
            if line.startswith(moment):
                os.killpg(process.pid, number)
    assert process.wait(DEMO_WITHIN_S) == status, said
    assert demo_mounts(folder) == []
    assert list(folder.iterdir()) == []


def test_without_lazyfs(folder: Path):
    done = subprocess.run(
        [DEMO],
        env={**os.environ, "PATH": "/usr/bin:/bin", "TMPDIR": os.fspath(folder)},
        capture_output=True,
        text=True,
        timeout=DEMO_WITHIN_S,
        check=False,
    )
    assert done.returncode == 1
    assert "make venv" in done.stderr
    assert list(folder.iterdir()) == []
