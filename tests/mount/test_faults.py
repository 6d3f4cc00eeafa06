"""The public fault suite (``faults/``, ``make faults``): the same faults, side by side as there."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from faults.model import REFUSED, Fault, Result
from faults.mounts import ROOT
from faults.report import as_markdown
from faults.run import FAULTS, TABLES, running
from tests.support.mounting import COMMAND_WITHIN_S, needs_fuse

pytestmark = [pytest.mark.mount, needs_fuse]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[Result]"]]:
    """What comes of those faults that were chosen, all of them under way at once."""
    chosen = {
        item.name.removeprefix("test_fault[").removesuffix("]") for item in request.session.items
    }
    with running([fault for fault in FAULTS if fault.name in chosen]) as futures:
        yield futures


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_fault(name: str, results: dict[str, "Future[Result]"]):
    result = results[name].result()
    assert result.agrees, f"{result.seen}, expected: {result.fault.expected}\n{result.details}"


def faults(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "faults", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
        check=False,
    )


def test_the_command(tmp_path: Path):
    listed = json.loads(faults("--list", "--json").stdout)
    assert [line["fault"] for line in listed] == [fault.name for fault in FAULTS]
    assert len({line["fault"] for line in listed}) == len(listed)
    assert faults("--only", "nonsense").returncode == 2
    done = faults("--only", "404", "--json")
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout)
    assert (result["fault"], result["agrees"]) == ("404", True)


def test_what_is_not_as_expected_is_told(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from faults import __main__, run\n"
        "from faults.model import Fault\n"
        "def fails(stage): raise AssertionError('it broke')\n"
        "wrong = [Fault('one', 'x', 'right', lambda stage: 'EIO'), Fault('two', 'x', 'y', fails)]\n"
        "__main__.FAULTS = wrong; __main__.TABLES = {'table': wrong}\n"
        "sys.exit(__main__.main())\n"
    )
    done = subprocess.run(
        [sys.executable, program],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "2 faults in" in done.stdout
    assert "2 not as expected" in done.stdout
    assert "one: EIO" in done.stderr
    assert "it broke" in done.stderr


def test_what_agrees():
    refused = Fault("a", "b", REFUSED + "not found", lambda stage: "")
    assert refused.agrees("mount refused: lazyfs: x: not found (404)")
    assert not refused.agrees("mount refused: lazyfs: something else")
    assert not refused.agrees("mounted, not found")
    right = Fault("a", "b", "right", lambda stage: "")
    assert right.agrees("right")
    assert not right.agrees("right and EIO")


def test_the_page_has_all_faults():
    """Made by ``python -m faults --list --markdown``."""
    assert (ROOT / "docs/faults.md").read_text().endswith(as_markdown(TABLES))
