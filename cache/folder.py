"""Opening the folder of a store: made if missing, refused if it is not safely ours.

    format   names the layout of the folder; written first, so a folder without it is no store
    usage    the count of bytes, and the lock of the store (``cache.ledger``)
    chunks/  the chunks, by ``ChunkKey.relative_path``
    tmp/     chunks being written
    locks/   chunks being fetched (``cache.flights``)

Who can write into the folder could plant links and make a privileged reader follow them, hence
only its owner may. The folder is held open and everything is reached through that descriptor, so
what was checked is what is used, whatever happens to the path.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cache.errors import CacheOpenError
from cache.ledger import USAGE_NAME

FORMAT_NAME: Final = "format"
FORMAT_LINE: Final = b"lazyfs chunk store 1\n"
CHUNKS_NAME: Final = "chunks"
TEMPORARY_NAME: Final = "tmp"
LOCKS_NAME: Final = "locks"

NEIGHBOURS: Final = frozenset({"documents", "conversions", "stores"})
"""Folders of others that may lie in a store: they are left alone."""

_FOLDERS: Final = (CHUNKS_NAME, TEMPORARY_NAME, LOCKS_NAME)
_NEW_FORMAT_PREFIX: Final = ".format-"
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

PAGE_BYTES: Final = 4096
"""The least that is in the page cache or not."""


def open_folder(path: Path) -> int:
    """Make or check the folder ``path`` and give it as an open descriptor; several at once may.

    Raises:
        CacheOpenError: not a folder, not ours, writable by others, something else in it, another
            format, or the disk failed.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = os.open(path, _DIRECTORY)
        try:
            _check_owner(root, path)
            _prepare(root, path)
        except BaseException:
            os.close(root)
            raise
    except OSError as error:
        raise CacheOpenError(f"cache folder {path}: {error.strerror or error}") from error
    return root


def _check_owner(root: int, path: Path) -> None:
    found = os.fstat(root)
    if found.st_uid != os.geteuid():
        raise CacheOpenError(
            f"cache folder {path} belongs to user {found.st_uid}, not to user {os.geteuid()}: "
            "choose another"
        )
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise CacheOpenError(
            f"cache folder {path} has mode {stat.S_IMODE(found.st_mode):04o}: "
            "others may write there; use chmod 700 or choose another"
        )


def _prepare(root: int, path: Path) -> None:
    """Check the format, or make an empty folder a store."""
    line = _read_format(root)
    if line is None:
        _refuse_foreign(root, path)
        _write_format(root)
    elif line != FORMAT_LINE:
        raise CacheOpenError(
            f"cache folder {path} has another format ({line!r:.60}): remove it or choose another"
        )
    if stat.S_IMODE(os.fstat(root).st_mode) != stat.S_IRWXU:
        os.fchmod(root, stat.S_IRWXU)  # what private images hold is nobody else's to read
    for name in _FOLDERS:
        make_folder(name, root)


def make_folder(name: str, root: int) -> None:
    """Make a folder below ``root`` unless it is there.

    Raises:
        OSError: the disk failed, or something else has that name.
    """
    try:
        os.mkdir(name, stat.S_IRWXU, dir_fd=root)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            raise


def _read_format(root: int) -> bytes | None:
    try:
        descriptor = os.open(FORMAT_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, 2 * len(FORMAT_LINE))
    finally:
        os.close(descriptor)


def _refuse_foreign(root: int, path: Path) -> None:
    """Never fill and evict in a folder that somebody uses for something else."""
    # Another process may be making the store now, or have put its own beside it already.
    ours = {FORMAT_NAME, USAGE_NAME, *_FOLDERS, *NEIGHBOURS}
    for name in os.listdir(root):
        if name not in ours and not name.startswith(_NEW_FORMAT_PREFIX):
            raise CacheOpenError(
                f"cache folder {path} is no chunk store and holds other files ({name!r:.80}): "
                "choose an empty or new one"
            )


def _write_format(root: int) -> None:
    """Write the format file whole or not at all, also should the power fail."""
    name = _NEW_FORMAT_PREFIX + secrets.token_hex(8)
    descriptor = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=root
    )
    try:
        os.write(descriptor, FORMAT_LINE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(name, FORMAT_NAME, src_dir_fd=root, dst_dir_fd=root)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however the file system divides it.

    Raises:
        OSError: the disk failed; part of it may be written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def is_at_hand(descriptor: int, offset: int, length: int) -> bool:
    """Whether both ends of a range, and so most likely all of it, are in the page cache.

    If not, the kernel begins to read them. File systems that cannot tell say no.
    """
    byte, last = bytearray(1), offset + length - 1
    try:
        for place in (offset, last) if offset // PAGE_BYTES != last // PAGE_BYTES else (offset,):
            if length and not os.preadv(descriptor, [byte], place, os.RWF_NOWAIT):
                return False
    except OSError:
        return False
    return True
