"""Small documents on disk under names: what tells how to read chunks, not the chunks themselves.

Each file carries a digest of its content, so that a torn or rotten one is found and counts as
absent. That is no protection against who can write here: what must be proven is proven by the
caller, against a digest from elsewhere. Several processes may use a folder at once.

    <name>          SHA-256 of the content, then the content
    .new-<random>   being written
"""

import contextlib
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from cache.errors import CacheOpenError, CacheWriteError
from cache.folder import make_folder, write_all

MAX_DOCUMENT_BYTES: Final = 64 << 20
"""A longer document is not kept; a chunk table of a terabyte is shorter."""

USED_AGAIN_S: Final = 3600.0
"""A use is noted (as modification time) if the last one noted is older than this."""

ABANDONED_S: Final = 3600.0
"""A file that has been in the making for longer is from a dead process."""

_SEAL_BYTES: Final = hashlib.sha256().digest_size
_NEW_PREFIX: Final = ".new-"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,200}", re.ASCII)
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class KeptDocument(NamedTuple):
    """A document, as a listing has it."""

    used_s: float
    """Last use, since the epoch; at most ``USED_AGAIN_S`` old."""
    size_bytes: int
    """On disk."""
    name: str


class DocumentFolder:
    """The documents in one folder; blocking, and usable from any thread."""

    def __init__(self, folder: int) -> None:
        """Use an open descriptor; use ``DocumentFolder.open``."""
        self._folder = folder

    @classmethod
    def open(cls, parent: Path, name: str) -> Self:
        """Open the folder ``name`` in ``parent``, which is there; made if it is missing.

        Raises:
            CacheOpenError: it cannot be made, or others may write to it.
        """
        try:
            root = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                make_folder(name, root)
                folder = os.open(name, _DIRECTORY, dir_fd=root)
            finally:
                os.close(root)
            documents = cls(folder)
            try:
                found = os.fstat(folder)
                if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise CacheOpenError(
                        f"folder {parent / name}: others than its owner may write there"
                    )
            except BaseException:
                documents.close()
                raise
        except OSError as error:
            raise CacheOpenError(f"folder {parent / name}: {error.strerror or error}") from error
        return documents

    def close(self) -> None:
        """Let go of the folder; no other call may follow."""
        os.close(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, name: str) -> bytes | None:
        """A document; None if it is absent, rotten or cannot be read."""
        try:
            file = os.open(_checked(name), _READ, dir_fd=self._folder)
        except OSError:
            return None
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_DOCUMENT_BYTES + _SEAL_BYTES:
                return None
            data = _read_all(file, found.st_size)
            if time.time() - found.st_mtime > USED_AGAIN_S:
                os.utime(name, dir_fd=self._folder)
        except OSError:
            return None
        finally:
            os.close(file)
        content = data[_SEAL_BYTES:]
        return content if hashlib.sha256(content).digest() == data[:_SEAL_BYTES] else None

    def write(self, name: str, content: bytes) -> None:
        """Keep a document, replacing what had its name; whole or not at all.

        Raises:
            CacheWriteError: it is not kept.
        """
        if len(content) > MAX_DOCUMENT_BYTES:
            raise CacheWriteError(f"document of {len(content)} bytes")
        new = _NEW_PREFIX + secrets.token_hex(8)
        try:
            file = os.open(new, _WRITE, 0o600, dir_fd=self._folder)
            try:
                try:
                    write_all(file, hashlib.sha256(content).digest())
                    write_all(file, content)
                finally:
                    os.close(file)
                os.rename(new, _checked(name), src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except BaseException:
                os.unlink(new, dir_fd=self._folder)
                raise
        except OSError as error:
            raise CacheWriteError(f"document {name}: {error.strerror or error}") from error

    def discard(self, name: str) -> None:
        """Remove a document; no matter if it is gone, or cannot be removed."""
        with contextlib.suppress(OSError):
            os.unlink(_checked(name), dir_fd=self._folder)

    def trim(self, limit_bytes: int) -> None:
        """Remove what was not used for longest, until the rest is within the limit."""
        documents = self.kept()
        total = sum(document.size_bytes for document in documents)
        for document in sorted(documents):
            if total <= limit_bytes:
                break
            with contextlib.suppress(OSError):
                os.unlink(document.name, dir_fd=self._folder)
            total -= document.size_bytes

    def kept(self) -> list[KeptDocument]:
        """All documents; what dead processes left unfinished is removed."""
        documents = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    abandoned = found.st_mtime < time.time() - ABANDONED_S
                    if not entry.name.startswith(_NEW_PREFIX):
                        documents.append(KeptDocument(found.st_mtime, found.st_size, entry.name))
                    elif abandoned:
                        os.unlink(entry.name, dir_fd=self._folder)
        return documents


def _checked(name: str) -> str:
    """The name, if it may be that of a file.

    Raises:
        ValueError: a bug.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.250} cannot name a document")
    return name


def _read_all(file: int, length: int) -> bytes:
    parts = []
    while length > 0 and (data := os.read(file, length)):
        parts.append(data)
        length -= len(data)
    return b"".join(parts)
