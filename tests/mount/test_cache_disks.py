"""What the disk of the cache may do to a real mount: every byte read stays right.

The same image, mounted by the kernel itself, says what is right.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.layer_builder import seekable
from tests.support.layer_layouts import tree_image, write_image
from tests.support.lazy_mounts import LazyMount, forget_pages, lazyfs, mounted
from tests.support.mounting import turn_read_only
from tests.support.sick_disk import sick_disk

pytestmark = pytest.mark.mount

IMAGE_BYTES = 6_000_000
CHUNK = 256 << 10
MAX_ASKING = 200


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="module")
def image(work: Path) -> str:
    content = tree_image(IMAGE_BYTES)
    (work / "raw.erofs").write_bytes(content)
    return write_image(work / "layout", [seekable(content, chunk=CHUNK)]).name


@pytest.fixture(scope="module")
def right(image: str, work: Path) -> Mapping[str, str]:
    """What the kernel reads."""
    place = work / "kernel"
    place.mkdir()
    command: list[str | Path] = ["mount", "-t", "erofs", "-o", "ro", work / "raw.erofs", place]
    subprocess.run(command, check=True)
    try:
        return read_all(place)
    finally:
        subprocess.run(["umount", place], check=True)


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file() and not path.is_symlink())


def read_all(place: Path) -> dict[str, str]:
    """The SHA-256 of each file, read anew."""
    files = files_of(place)
    forget_pages(files)
    found = {
        os.fspath(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert len(found) > 3
    return found


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    options = f"size={size},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def problem(mount: LazyMount) -> str:
    """What ``status`` says of the cache; nothing if all is well."""
    cache = mount.status()["cache"]
    assert isinstance(cache, dict)
    return cache["problem"] or ""


def wait_until_well(mount: LazyMount) -> None:
    for _ in range(MAX_ASKING):
        if not problem(mount):
            return
    raise AssertionError(f"still: {problem(mount)}")


def lines(mount: LazyMount) -> list[str]:
    """What the log says of the cache."""
    return [line for line in mount.log().splitlines() if "cache" in line]


def stored(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "chunks").rglob("*") if path.is_file())


def survives(
    mount: LazyMount, right: Mapping[str, str], cache: Path, why: str, mend: Callable[[], None]
) -> None:
    """Reads on without the cache, says so once, and uses it again when it is well."""
    for _ in range(2):
        assert read_all(mount.path) == right
    assert why in problem(mount)
    mend()
    wait_until_well(mount)
    assert read_all(mount.path) == right
    assert problem(mount) == ""
    assert stored(cache)
    log = lines(mount)
    assert sum("works again" in line for line in log) == 1, log
    assert sum("reading on" in line or "without a cache" in line for line in log) == 1, log
    assert mount.failures() == {}


def test_a_full_disk(image: str, right: Mapping[str, str], tmp_path: Path):
    disk = tmp_path / "disk"
    options = ("--cache-dir", disk / "cache", "--cache-min-free", "0")
    with tmpfs(disk, "1500k"), mounted(image, tmp_path / "mnt", *options) as mount:
        mend = lambda: remount(disk, "size=64M")  # noqa: E731
        survives(mount, right, disk / "cache", "No space left", mend)


def test_a_disk_below_its_mark(image: str, right: Mapping[str, str], tmp_path: Path):
    """Evicts instead of growing, and that is no problem."""
    disk = tmp_path / "disk"
    options = ("--cache-dir", disk / "cache", "--cache-min-free", "2MiB")
    with tmpfs(disk, "4M"), mounted(image, tmp_path / "mnt", *options) as mount:
        assert read_all(mount.path) == right
        found = os.statvfs(disk)
        assert found.f_bavail * found.f_frsize >= (2 << 20) - 4 * CHUNK
        assert mount.failures() == {}


@pytest.mark.parametrize("before", [True, False], ids=["before", "during"])
def test_a_read_only_disk(image: str, right: Mapping[str, str], tmp_path: Path, before: bool):
    disk = tmp_path / "disk"
    with tmpfs(disk, "64M"):
        if before:
            remount(disk, "ro")
        with mounted(image, tmp_path / "mnt", "--cache-dir", disk / "cache") as mount:
            turn_read_only(disk)
            survives(mount, right, disk / "cache", "Read-only", lambda: remount(disk, "rw"))


def test_a_folder_that_is_removed(image: str, right: Mapping[str, str], tmp_path: Path):
    cache = tmp_path / "cache"
    with mounted(image, tmp_path / "mnt", "--cache-dir", cache) as mount:
        shutil.rmtree(cache)
        assert read_all(mount.path) == right
        wait_until_well(mount)
        assert read_all(mount.path) == right
        assert stored(cache)
        assert len(lines(mount)) <= 3, "not a line for each chunk"


def test_a_folder_with_wrong_permissions(image: str, right: Mapping[str, str], tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with mounted(image, tmp_path / "mnt", "--cache-dir", cache) as mount:
        survives(mount, right, cache, "mode 0777", lambda: cache.chmod(0o700))


@pytest.mark.parametrize("what", ["read", "write", "read write"])
def test_a_disk_that_fails(image: str, right: Mapping[str, str], tmp_path: Path, what: str):
    disk, control = tmp_path / "disk", tmp_path / "control"
    with (
        sick_disk(disk, control),
        mounted(image, tmp_path / "mnt", "--cache-dir", disk / "cache") as mount,
    ):
        some = files_of(mount.path)[::2]
        for path in some:
            path.read_bytes()
        control.write_text(what)
        if what == "read":
            assert read_all(mount.path) == right
            assert read_all(mount.path) == right
            control.write_text("")
            wait_until_well(mount)
            assert read_all(mount.path) == right
        else:
            survives(mount, right, disk / "cache", "error", lambda: void(control.write_text("")))


def void(_result: object) -> None:
    """For a lambda that must not have a result."""


def test_a_limit_for_files(image: str, right: Mapping[str, str], tmp_path: Path):
    """RLIMIT_FSIZE: a chunk is longer than any file may be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK - 4096, before[1]))
    try:
        with mounted(image, tmp_path / "mnt", "--cache-dir", tmp_path / "cache") as mount:
            assert read_all(mount.path) == right
            assert "File too large" in problem(mount)
            assert mount.failures() == {}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x" * 5000)


HARMS: dict[str, Callable[[Path], None]] = {
    "zeroed": zero,
    "empty": lambda path: os.truncate(path, 0),
    "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
    "extended": extend,
}


@pytest.mark.parametrize("running", [True, False], ids=["while mounted", "before"])
def test_what_a_power_cut_leaves(
    image: str, right: Mapping[str, str], tmp_path: Path, running: bool
):
    """Found on reading, and replaced; what is behind a chunk's end is never looked at."""
    cache = tmp_path / "cache"
    options = ("--cache-dir", cache)
    with mounted(image, tmp_path / "one", *options) as mount:
        assert read_all(mount.path) == right
        kinds = list(HARMS.items())
        chunks = [path for path in stored(cache) if path.suffix == ".data"]
        content = {path: path.read_bytes() for path in chunks}
        assert len(chunks) > 2 * len(kinds)
        for number, path in enumerate(chunks):
            kinds[number % len(kinds)][1](path)
        if running:
            assert read_all(mount.path) == right
            assert mount.failures() == {}
    with mounted(image, tmp_path / "two", *options) as mount:
        assert read_all(mount.path) == right
        assert mount.failures() == {}
    for path, data in content.items():
        assert path.read_bytes()[: len(data)] == data, "not replaced"


def test_clear_leaves_what_a_live_mount_needs(image: str, right: Mapping[str, str], tmp_path: Path):
    cache = tmp_path / "cache"
    other = write_image(tmp_path / "other", [seekable(tree_image(50_000), chunk=CHUNK)]).name
    layout = tmp_path / "layout"
    shutil.copytree(image.removeprefix("oci:").partition(":")[0], layout)
    copy = f"oci:{layout}:" + image.rpartition(":")[2]
    with mounted(other, tmp_path / "gone", "--cache-dir", cache) as mount:
        assert read_all(mount.path)
    with mounted(copy, tmp_path / "mnt", "--cache-dir", cache) as mount:
        assert read_all(mount.path) == right
        done = lazyfs("cache", "clear", "--force", "--json", "--cache-dir", cache)
        removed = json.loads(done.stdout)
        assert removed["chunks"] > 0
        assert str(mount.path) in removed["stays"][0]
        requests = mount.totals()["requests"]
        assert read_all(mount.path) == right
        assert mount.totals()["requests"] == requests, "nothing had to be fetched again"
        listed = json.loads(lazyfs("cache", "ls", "--json", "--cache-dir", cache).stdout)
        assert [one["names"] for one in listed["images"]] == [[copy]]
        assert listed["unattributed"]["chunks"] == 0
        lazyfs("cache", "clear", "--force", "--all", "--cache-dir", cache)
        assert read_all(mount.path) == right
        assert mount.totals()["requests"] > requests
