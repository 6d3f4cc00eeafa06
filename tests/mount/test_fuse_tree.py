"""What a mount shows is what the tree says, errors included."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.model import ROOT_NODE
from tests.support.memory_tree import FAILURES, MemoryTree, basic_tree
from tests.support.mounting import Mount, mounted, needs_fuse, public_folder

pytestmark = [pytest.mark.mount, needs_fuse]

NANOSECONDS = 10**9


@pytest.fixture(scope="module")
def basic():
    with public_folder() as folder, mounted("basic", folder) as mount:
        yield mount


def paths(tree: MemoryTree, node=ROOT_NODE, path="."):
    yield path, node
    for name, child in tree.nodes[node].children.items():
        yield from paths(tree, child, os.path.join(path, os.fsdecode(name)))


def expected(tree: MemoryTree, node) -> dict[str, int]:
    attributes = tree.nodes[node].attributes
    time_ns = attributes.mtime_s * NANOSECONDS + attributes.mtime_ns
    return {
        "st_ino": node,
        "st_mode": attributes.mode,
        "st_nlink": attributes.nlink,
        "st_uid": attributes.uid,
        "st_gid": attributes.gid,
        "st_size": attributes.size_bytes,
        "st_blocks": attributes.blocks_512,
        "st_blksize": 4096,
        "st_rdev": os.makedev(attributes.rdev_major, attributes.rdev_minor),
        "st_mtime_ns": time_ns,
        "st_ctime_ns": time_ns,
        "st_atime_ns": time_ns,
    }


BASIC = basic_tree(None)


@pytest.mark.parametrize("path", [path for path, _ in paths(BASIC)])
def test_every_attribute(basic: Mount, path):
    node = dict(paths(BASIC))[path]
    found = os.lstat(basic.path / path)
    wanted = expected(BASIC, node)
    assert {key: getattr(found, key) for key in wanted} == wanted


def test_content_and_links(basic: Mount):
    assert (basic.path / "hello").read_bytes() == b"hello world\n"
    assert (basic.path / "large").read_bytes() == bytes(range(256)) * 16384
    assert (basic.path / "dir/sub/file").read_bytes() == b"deep"
    assert (basic.path / os.fsdecode(b"odd \xff\n name")).read_bytes() == b"odd"
    assert os.readlink(basic.path / "link") == "hello"
    assert os.readlink(basic.path / "dangling") == "/nowhere/" + "x" * 4000
    assert (basic.path / "link").read_bytes() == b"hello world\n"
    with open(basic.path / "large", "rb") as file:
        file.seek(1_000_003)
        assert file.read(5) == bytes((1_000_003 + n) % 256 for n in range(5))
        assert os.pread(file.fileno(), 100, 4 << 20) == b""


def test_listing_has_names_numbers_types_and_dots(basic: Mount):
    found = {
        entry.name: (entry.inode(), entry.stat(follow_symlinks=False).st_mode)
        for entry in os.scandir(basic.path)
    }
    root = BASIC.nodes[ROOT_NODE]
    assert found == {
        os.fsdecode(name): (node, BASIC.nodes[node].attributes.mode)
        for name, node in root.children.items()
    }
    # Python hides the dots, so ask a program that does not.
    names = subprocess.run(["ls", "-f", basic.path], capture_output=True, timeout=60).stdout
    assert names.startswith(b".\n..\n")


def test_xattrs(basic: Mount):
    path = basic.path / "xattrs"
    assert sorted(os.listxattr(path)) == ["user.big", "user.empty", "user.small"]
    assert os.getxattr(path, "user.small") == b"1"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.big") == b"v" * 60_000
    with pytest.raises(OSError, match="No data available") as missing:
        os.getxattr(path, "user.none")
    assert missing.value.errno == errno.ENODATA
    assert os.listxattr(basic.path / "hello") == []


def test_acl_is_shown_and_obeyed(basic: Mount):
    listed = subprocess.run(
        ["getfacl", "-nEp", basic.path / "acl"], capture_output=True, text=True, timeout=60
    )
    assert "user:65279:r--" in listed.stdout.splitlines()
    for user, status in ((65279, 0), (65278, 1)):
        words = ["setpriv", f"--reuid={user}", "--clear-groups", "cat", str(basic.path / "acl")]
        assert subprocess.run(words, capture_output=True, timeout=60).returncode == status


def test_permissions_are_checked_for_other_users(basic: Mount):
    words = ["setpriv", "--reuid=65534", "--clear-groups", "cat"]
    for name, status in (("hello", 0), ("hard1", 1), ("dir/sub/file", 1)):
        done = subprocess.run([*words, basic.path / name], capture_output=True, timeout=60)
        assert done.returncode == status


def test_negative_lookups_are_asked_once(basic: Mount):
    asked = []
    for _ in range(2):
        for _ in range(3):
            assert not os.path.lexists(basic.path / "absent")
        asked.append(basic.status()["calls"]["lookup"])
    assert asked[0] == asked[1]
    with pytest.raises(NotADirectoryError):
        os.lstat(basic.path / "hello/below")
    with pytest.raises(OSError, match="File name too long"):
        os.lstat(basic.path / ("n" * 256))


def test_known_names_attributes_and_pages_are_asked_once(basic: Mount):
    path = basic.path / "dir/sub/file"
    assert path.read_bytes() == b"deep"
    before = basic.status()["calls"]
    for _ in range(5):
        assert path.read_bytes() == b"deep"
        os.lstat(path)
    after = basic.status()["calls"]
    assert [after[call] for call in ("lookup", "attributes", "read")] == [
        before[call] for call in ("lookup", "attributes", "read")
    ]


def test_statfs(basic: Mount):
    figures = os.statvfs(basic.path)
    assert figures.f_bsize == 4096
    assert figures.f_blocks * 4096 == 1 << 20  # the size of the only layer
    assert figures.f_bfree == figures.f_bavail == 0
    assert figures.f_namemax == 255
    assert figures.f_flag & os.ST_RDONLY
    assert figures.f_flag & os.ST_NOSUID


def write_attempts(path: Path):
    yield lambda: os.open(path / "hello", os.O_WRONLY)
    yield lambda: os.open(path / "hello", os.O_RDWR | os.O_APPEND)
    yield lambda: os.open(path / "hello", os.O_RDONLY | os.O_TRUNC)
    yield lambda: os.open(path / "new", os.O_WRONLY | os.O_CREAT)
    yield lambda: os.truncate(path / "hello", 0)
    yield lambda: os.mkdir(path / "new")
    yield lambda: os.rmdir(path / "dir")
    yield lambda: os.unlink(path / "hello")
    yield lambda: os.rename(path / "hello", path / "new")
    yield lambda: os.link(path / "hello", path / "new")
    yield lambda: os.symlink("x", path / "new")
    yield lambda: os.mknod(path / "new", stat.S_IFIFO | 0o600)
    yield lambda: os.chmod(path / "hello", 0o600)
    yield lambda: os.chown(path / "hello", 1, 1)
    yield lambda: os.utime(path / "hello")
    yield lambda: os.setxattr(path / "hello", "user.x", b"1")
    yield lambda: os.removexattr(path / "xattrs", "user.small")


def test_writing_is_refused(basic: Mount):
    for attempt in write_attempts(basic.path):
        with pytest.raises(OSError, match="Read-only") as refused:
            attempt()
        assert refused.value.errno == errno.EROFS


def test_wrong_kinds_of_node(basic: Mount):
    with pytest.raises(IsADirectoryError):
        (basic.path / "dir").read_bytes()
    with pytest.raises(NotADirectoryError):
        os.listdir(basic.path / "hello")
    with pytest.raises(OSError, match="Invalid argument"):
        os.readlink(basic.path / "hello")


@pytest.mark.parametrize("name", [name.decode() for name in FAILURES])
def test_errors_become_errnos_and_the_mount_lives(basic: Mount, name):
    wanted = {
        "format": errno.EUCLEAN,
        "group": errno.EUCLEAN,
        "unsupported": errno.EOPNOTSUPP,
        "oserror": errno.ENOSPC,
    }
    with pytest.raises(OSError, match=r".") as failed:
        (basic.path / "fail" / name).read_bytes()
    assert failed.value.errno == wanted.get(name, errno.EIO)
    assert (basic.path / "hello").read_bytes() == b"hello world\n"


def test_failures_are_logged_once_and_counted(tmp_path):
    with mounted("basic", tmp_path) as mount:
        for _ in range(5):
            for name in ("digest", "key"):
                with pytest.raises(OSError, match="Input/output"):
                    (mount.path / "fail" / name).read_bytes()
        log = mount.log()
        assert log.count("chunk 3: wanted sha512:aa, got sha512:bb") == 1
        assert log.count("Traceback") == 1  # of the KeyError: a bug
        assert "KeyError" in log
        assert mount.status()["fuse"]["failures"]["EIO"] >= 10


def test_a_directory_of_ten_thousand(tmp_path):
    wanted = [f"file-{number:05}" for number in range(10_000)]
    with mounted("big", tmp_path) as mount:
        directory = mount.path / "big"
        assert os.listdir(directory) == wanted
        assert sum(entry.stat().st_size for entry in os.scandir(directory)) == 38890
        assert (directory / "file-09999").read_bytes() == b"9999"
        found = subprocess.run(
            [sys.executable, "-c", SEEKING, directory], capture_output=True, text=True, timeout=60
        )
        assert found.stderr == ""
        assert found.stdout.split() == ["10002", "True", "True"]


SEEKING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
for function in (libc.readdir, libc.telldir, libc.seekdir, libc.rewinddir):
    function.argtypes = [ctypes.c_void_p]
libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
directory = libc.opendir(os.fsencode(sys.argv[1]))
def name(entry):
    return ctypes.string_at(entry + 19)
listed = []
while True:
    position = libc.telldir(directory)
    entry = libc.readdir(directory)
    if not entry:
        break
    listed.append((position, name(entry)))
print(len(listed))
right = True
for index in (9000, 1, 5000, 0, 2, 10001, 150):
    libc.seekdir(directory, listed[index][0])
    right &= name(libc.readdir(directory)) == listed[index][1]
print(right)
libc.rewinddir(directory)
print(name(libc.readdir(directory)) == b".")
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    with mounted("broken", tmp_path_factory.mktemp("broken")) as mount:
        yield mount


@pytest.mark.parametrize("name", ["format", "unsupported", "group"])
def test_a_broken_inode_costs_only_itself(broken: Mount, name):
    directory = broken.path / name
    number = errno.EOPNOTSUPP if name == "unsupported" else errno.EUCLEAN
    for _ in range(2):
        assert os.listdir(directory) == ["before", "broken", "behind"]
        assert (directory / "behind").read_bytes() == b"behind"
        with pytest.raises(OSError, match=r".") as failed:
            os.lstat(directory / "broken")
        assert failed.value.errno == number


LOOKING = """
import os, sys
first, then = sys.argv[1:]
os.listdir(first)
os.lstat(os.path.join(first, "known"))
os.execvp("ls", ["ls", "-f", then])
"""
"""Looks at what it lists, so that the next listing comes with attributes."""


@pytest.mark.parametrize("name", ["digest", "unavailable", "oserror", "key", "bad-group"])
def test_a_listing_that_fails_says_so_after_what_it_has(broken: Mount, name):
    directory = broken.path / name
    command = [sys.executable, "-c", LOOKING, broken.path / f"{name}-sound", directory]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.stdout.split() == [b".", b"..", b"before"]
    assert done.returncode != 0
    assert (b"No space" if name == "oserror" else b"Input/output error") in done.stderr
    assert (directory / "behind").read_bytes() == b"behind"


@pytest.mark.parametrize(
    "name",
    ["format", "unsupported", "group", "digest", "unavailable", "oserror", "key", "bad-group"],
)
def test_a_broken_directory_costs_only_itself(broken: Mount, name):
    directory = broken.path / f"{name}-folder"
    assert os.listdir(directory) == ["broken", "behind"]
    with pytest.raises(OSError, match=r"."):
        os.lstat(directory / "broken")


def test_a_walk_costs_only_listings(tmp_path):
    with mounted("basic", tmp_path) as mount:
        before = mount.status()
        walk = ["find", os.fspath(mount.path)]
        assert len(subprocess.run(walk, capture_output=True, timeout=60).stdout.split()) > 100
        after = mount.status()
        for words in ("lookup", "readdir"):
            assert words not in after["fuse"]["operations"]
        looked = after["calls"]["attributes"] - before["calls"].get("attributes", 0)
        assert looked == 4  # "dir", "dir/sub" and "fail", and the root itself


def test_who_looks_at_what_he_lists_is_given_attributes(tmp_path):
    with mounted("big", tmp_path, "--timeout", "10s") as mount:
        done = subprocess.run(["ls", "-l", mount.path / "big"], capture_output=True, timeout=60)
        assert len(done.stdout.splitlines()) == 10_001
        assert mount.status()["fuse"]["operations"]["lookup"] < 2000


def test_a_listing_that_takes_too_long_hands_out_what_it_has(tmp_path):
    with mounted("slow", tmp_path, "--timeout", "100ms") as mount:
        command = [
            sys.executable,
            "-c",
            LOOKING,
            *(f"{mount.path}/{name}" for name in ("sound", "folder")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [".", "..", "before"]
        assert "Input/output error" in done.stderr
        assert (mount.path / "before").read_bytes() == b"before"


def test_a_listing_does_not_wait_for_a_directory_in_it(tmp_path):
    with mounted("slow", tmp_path) as mount:
        assert os.listdir(mount.path) == ["before", "folder", "silent", "sound"]


def test_many_readers_at_once(basic: Mount):
    """All of them wait for the tree at the same time, and others are served meanwhile."""
    basic.switch("wait", on=True)
    for number in range(1, 64):
        basic.switch("wait" + "." * number, on=True)
    with ThreadPoolExecutor(64) as pool:
        reads = [pool.submit((basic.path / f"wait{number}").read_bytes) for number in range(64)]
        assert (basic.path / "hello").read_bytes() == b"hello world\n"
        assert not any(read.done() for read in reads)
        basic.switch("wait", on=False)
        for number in range(1, 64):
            basic.switch("wait" + "." * number, on=False)
        assert [read.result() for read in reads] == [
            b"wait:wait" + b"." * number for number in range(64)
        ]


def test_a_stuck_read_gets_an_error_and_a_later_one_the_data(tmp_path):
    with mounted("basic", tmp_path, "--timeout", "100ms") as mount:
        mount.switch("wait", on=True)
        with pytest.raises(OSError, match="Input/output"):
            (mount.path / "wait0").read_bytes()
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
        mount.switch("wait", on=False)
        assert read_in_the_end(mount.path / "wait0") == b"wait:wait"
        assert mount.log().count("no answer within 2.1 s") == 1


def read_in_the_end(path: Path) -> bytes:
    """Read a file whose last failure may still be remembered, for a moment."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            return path.read_bytes()
        time.sleep(0.05)
    raise AssertionError(f"{path} still cannot be read")


def test_a_killed_reader_ends_at_the_deadline_at_the_latest(tmp_path):
    with mounted("basic", tmp_path, "--timeout", "100ms") as mount:
        mount.switch("wait", on=True)
        reader = subprocess.Popen(["cat", mount.path / "wait0"], stderr=subprocess.DEVNULL)
        mount.wait_for_request()
        reader.kill()
        assert reader.wait(60) == -9


def test_a_withdrawn_request_does_not_stop_the_others(tmp_path):
    """A process is killed between "the device is readable" and the reading of it.

    Without care the daemon then sleeps in that read until somebody asks for something new.
    The order of its tasks is random, so once in two times the gap is not met: four attempts.
    """
    with mounted("basic", tmp_path, "--timeout", "0") as mount:
        for attempt in range(4):
            hog = "hog" + "." * attempt
            mount.switch(hog, on=True)
            words = ["cat", str(mount.path / f"hog{attempt}")]
            busy = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            mount.wait_for_request()
            victim = subprocess.Popen(
                ["stat", mount.path / f"absent{attempt}"], stderr=subprocess.DEVNULL
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(0.25)
            victim.kill()
            victim.wait(60)
            mount.switch(hog, on=False)
            assert busy.wait(60) == 0
