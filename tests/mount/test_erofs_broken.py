"""Broken images in real mounts: an error for who asks, and a server that lives on.

The images are those of ``tests/io/test_erofs_corrupted.py``. A few are tried;
LAZYFS_FUZZ_MOUNTS sets how many of each golden image.
"""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.erofs_fields import some_changes
from tests.support.erofs_files import golden_devices, golden_names
from tests.support.mounting import needs_fuse
from tests.support.served import RefusedError, served

pytestmark = [pytest.mark.mount, pytest.mark.slow, needs_fuse]

MOUNTS = int(os.environ.get("LAZYFS_FUZZ_MOUNTS", "1"))

MOST_BYTES = 192 << 20
"""Peak of the server: Python and caches of 48 MiB, and some pclusters of up to 12 MiB."""

MOST_PATHS = 3000
PIECE_BYTES = 1 << 20
MOST_READ_BYTES = 64 << 20
"""A broken image may say that a file is a long hole; reading all of that is no test."""

ALLOWED = {
    errno.EUCLEAN,
    errno.EIO,
    errno.EOPNOTSUPP,  # a feature that nobody has
    errno.EOVERFLOW,  # a file larger than Linux has
    errno.ENOENT,  # names out of order
    errno.ELOOP,
    errno.EINVAL,
    errno.E2BIG,  # more attributes than Linux lists
    errno.ERANGE,
    errno.ENODATA,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,  # the directory was found elsewhere meanwhile
}


def walk(root: bytes) -> None:
    """Ask everything of every path.

    Raises:
        OSError: an error that no broken image may give, such as ENOTCONN.
    """
    pending = [root]
    visited = 0
    while pending:
        path = pending.pop()
        visited += 1
        assert visited < MOST_PATHS, "a broken image has become endless"
        for ask in (os.lstat, list_names, read_link, read_xattrs, read_file):
            try:
                answer = ask(path)
            except OSError as error:
                if error.errno not in ALLOWED:
                    raise
                continue
            if isinstance(answer, list):
                pending += [path + b"/" + name for name in answer]


def read_link(path: bytes) -> None:
    if stat.S_ISLNK(os.lstat(path).st_mode):
        os.readlink(path)


def list_names(path: bytes) -> list[bytes]:
    return os.listdir(path) if stat.S_ISDIR(os.lstat(path).st_mode) else []


def read_xattrs(path: bytes) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        os.getxattr(path, name, follow_symlinks=False)


def read_file(path: bytes) -> None:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return
    total = 0
    with open(path, "rb", buffering=0) as file:
        while total < MOST_READ_BYTES and (data := file.read(PIECE_BYTES)):
            total += len(data)
    assert total == status.st_size or total >= MOST_READ_BYTES


@pytest.mark.parametrize("name", golden_names())
def test_a_broken_image_costs_errors_only(name: str, tmp_path: Path):
    image, device = tmp_path / "image", tmp_path / "device"
    devices = golden_devices(name)
    words = f"erofs:{image}"
    if len(devices) > 1:
        device.write_bytes(devices[1])
        words += f",device={device}"
    changes = some_changes(name, MOUNTS)
    for change in changes:
        image.write_bytes(change.of(devices[0]))
        try:
            with served(words, tmp_path / "mnt") as mount:
                walk(os.fsencode(mount.path))
                assert mount.is_alive()
                os.statvfs(mount.path)
                assert mount.peak_bytes() < MOST_BYTES
        except RefusedError:
            continue
        except BaseException as error:
            error.add_note(f"{name}: {change.what}")
            raise
    print(f"{name}: {len(changes)} mounts")  # noqa: T201 - for a long run with "pytest -s"
