"""``check_tree`` on broken images: it ends, and nothing but its own errors come out of it."""

import os
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.erofs import fsck
from lazyfs.erofs.fsck import Problem, TreeCounts, check_tree
from lazyfs.errors import LazyfsError, TruncatedRecordError
from tests.support.erofs_files import ImageFiles, golden_devices, golden_names, sealed
from tests.support.layer_builder import directory, erofs_image, file

EXAMPLES = int(os.environ.get("LAZYFS_FUZZ_EXAMPLES", "100"))


MOST_NEEDS = 300_000
"""A check of a sound image makes some 15,000 requests."""


def check(devices: list[bytes]) -> tuple[TreeCounts, list[Problem], ImageFiles]:
    def readable(device: int, address: int, length: int) -> None:
        if device >= len(devices) or not 0 <= address <= address + length <= len(devices[device]):
            raise TruncatedRecordError(f"{length} bytes at {address} of device {device}")

    problems: list[Problem] = []
    files = ImageFiles(devices, most_needs=MOST_NEEDS)
    counts = files.run(check_tree(files.image, readable, problems.append))
    return counts, problems, files


GOLDEN = {name: golden_devices(name) for name in golden_names()}


@pytest.mark.parametrize("name", GOLDEN)
def test_sound(name: str):
    counts, problems, _ = check(GOLDEN[name])
    assert problems == []
    assert counts.problems == 0
    assert counts.inodes > 20


@cache
def touched(name: str) -> list[int]:
    """Offsets of bytes that the check of the sound image looks at."""
    *_, files = check(GOLDEN[name])
    ranges = {(need.offset, need.length) for need in files.asked if not need.device}
    return sorted({at for start, length in ranges for at in range(start, start + length, 2)})


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_random_bytes(name: str, data: st.DataObject):
    image, *extra = GOLDEN[name]
    broken = bytearray(image)
    for _ in range(data.draw(st.integers(1, 8))):
        offset = data.draw(st.sampled_from(touched(name))) + data.draw(st.integers(0, 1))
        broken[offset] = data.draw(st.integers(0, 255))
    try:
        counts, problems, _ = check([sealed(broken), *extra])
    except LazyfsError:  # the superblock, or a limit
        return
    assert counts.problems == len(problems)
    assert all(isinstance(problem.error, LazyfsError) for problem in problems)


def huge_file() -> bytes:
    """An image with a file that is as long as files can be, and of which nothing is there."""
    image = bytearray(erofs_image({b"f": file(b"x" * 5000, mtime_ns=1)}))
    files = ImageFiles([bytes(image)])
    inode = files.inode_at(b"f")
    at = files.image.superblock.meta_address + 32 * inode.nid + 8  # i_size of an extended inode
    assert int.from_bytes(image[at : at + 8], "little") == 5000
    image[at : at + 8] = (1 << 62).to_bytes(8, "little")
    image[at - 8] = 1  # extended, and flat without inline data
    return sealed(image)


def test_a_file_of_any_size_is_one_look():
    counts, problems, _ = check([huge_file()])
    assert counts.extents == 1
    (problem,) = problems
    assert isinstance(problem.error, TruncatedRecordError)


def test_limits(monkeypatch: pytest.MonkeyPatch):
    image = erofs_image({b"/".join([b"d"] * depth): directory() for depth in range(1, 40)})
    monkeypatch.setattr(fsck, "MAX_DEPTH", 20)
    _, (problem,), _ = check([image])
    assert "more than 20 directories inside each other" in str(problem.error)
    assert problem.path == b"/" + b"/".join([b"d"] * 20)
    monkeypatch.setattr(fsck, "MAX_NAMES", 10)
    with pytest.raises(LazyfsError, match="more than 10 names"):
        check([image])
    monkeypatch.undo()
    monkeypatch.setattr(fsck, "MAX_RUNS", 3)
    with pytest.raises(LazyfsError, match="more than 3 extents"):
        check([erofs_image({b"%d" % number: file(b"x") for number in range(9)})])
    monkeypatch.undo()
    monkeypatch.setattr(fsck, "MAX_PROBLEMS", 0)
    with pytest.raises(LazyfsError, match="more than 0 problems"):
        check([huge_file()])
