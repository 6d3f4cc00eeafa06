"""Files of a root directory that may be hostile, read without leaving it."""

import os
from pathlib import Path

import pytest

from lazyfs.errors import RunError
from lazyfs.run.inside import MAX_FILE_BYTES, read_inside


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/inside").write_text("ours")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/inside", "ours"),
        ("../../../../inside", "ours"),
        ("../../outside", ""),
        ("/inside/not-a-folder", ""),
        ("/nowhere", ""),
    ],
)
def test_links_stay_inside(root: Path, target: str, found: str):
    (root / "etc/passwd").symlink_to(target)
    assert read_inside(os.fspath(root), "etc/passwd") == found


def test_absolute_links_to_the_host_lead_nowhere(root: Path):
    (root / "etc/passwd").symlink_to(root.parent / "outside")
    assert read_inside(os.fspath(root), "etc/passwd") == ""


@pytest.mark.parametrize("kind", ["folder", "endless link", "too long"])
def test_what_cannot_be_read_is_an_error(root: Path, kind: str):
    path = root / "etc/passwd"
    if kind == "folder":
        path.mkdir()
    elif kind == "endless link":
        path.symlink_to("passwd")
    else:
        path.write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(RunError, match="etc/passwd"):
        read_inside(os.fspath(root), "etc/passwd")


def test_a_pipe_does_not_hold_us_up(root: Path):
    os.mkfifo(root / "etc/passwd")
    assert read_inside(os.fspath(root), "etc/passwd") == ""
