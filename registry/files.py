"""Local files as blobs: ranges read through open files, whole files written in one step.

Every system call runs in a worker thread. A reader keeps its file open, so a file that is
replaced by another while it is being read goes on giving the bytes it had.
"""

import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Protocol

import trio

from registry.digest import DigestVerifier
from registry.errors import ContentError, NotFoundError, TransportError
from registry.manifest import Descriptor, verify_content
from registry.pieces import regroup
from registry.ranges import Range, check_range

PARTIAL = ".partial"
"""Ends the names of files, hidden ones, that are being written."""

ABANDONED_S = 60
"""Partial files that are younger may belong to a writer that has not locked them yet."""

PIECE_BYTES = 1 << 20
"""What one worker thread reads or writes at a time: its hand-over costs about 0.1 ms."""


@contextmanager
def file_errors(path: Path | str) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into errors of this package."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{path}: no such file", status=404) from error
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror or error}") from error


class OpenFiles:
    """The open file descriptors of a source; ``close`` ends them all."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def open(self, path: Path) -> tuple[int, int]:
        """Open a regular file (blocks); return file descriptor and size in bytes.

        Raises:
            RegistryError: it cannot be opened, or is something else than a file.
        """
        with file_errors(path):
            # A FIFO in the folder must not stop us: hence O_NONBLOCK, which files ignore.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._fds.append(fd)
            status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ContentError(f"{path}: not a regular file")
        return fd, status.st_size

    def close(self) -> None:
        """Close everything that was opened."""
        while self._fds:
            os.close(self._fds.pop())


class FileRange:
    """A blob that is a part of an open file (a ``BlobReader``)."""

    ranges_at_once = 1

    def __init__(self, fd: int, start: int, size_bytes: int, origin: str) -> None:
        self._fd = fd
        self._start = start
        self.size_bytes = size_bytes
        self.origin = origin

    async def fetch(self, offset: int, length: int) -> bytes:
        """As ``BlobReader.fetch``."""
        check_range(offset, length, self.size_bytes, self.origin)
        return await trio.to_thread.run_sync(self.read, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """The same, for a caller that is in a worker thread already."""
        check_range(offset, length, self.size_bytes, self.origin)
        pieces: list[bytes] = []
        missing = length
        with file_errors(self.origin):
            while missing:
                position = self._start + offset + length - missing
                piece = os.pread(self._fd, missing, position)
                if not piece:
                    raise TransportError(f"{self.origin}: ends at {position}, was cut meanwhile")
                pieces.append(piece)
                missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stream(
        self, offset: int, length: int, *more: Range
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As ``BlobReader.stream``."""
        ranges = ((offset, length), *more)
        for where in ranges:
            check_range(*where, self.size_bytes, self.origin)
        return self._stream(ranges)

    def distrust(self, offset: int, length: int) -> str:
        """As ``BlobReader.distrust``: the file is all there is."""
        return self.origin

    @asynccontextmanager
    async def _stream(self, ranges: Sequence[Range]) -> AsyncIterator[AsyncIterator[bytes]]:
        async with aclosing(self._pieces(ranges)) as pieces:
            yield pieces

    async def _pieces(self, ranges: Sequence[Range]) -> AsyncGenerator[bytes, None]:
        for offset, length in ranges:
            for position in range(offset, offset + length, PIECE_BYTES):
                yield await self.fetch(position, min(PIECE_BYTES, offset + length - position))


class Members(Protocol):
    """Named files of a folder or archive."""

    async def open(self, name: str) -> FileRange:
        """The file with that relative name.

        Raises:
            NotFoundError: there is none.
        """
        ...


class FolderMembers:
    """The files below a folder."""

    def __init__(self, root: Path, files: OpenFiles) -> None:
        self._root = root
        self._files = files

    async def open(self, name: str) -> FileRange:
        """As ``Members.open``."""
        path = self._root / name
        fd, size_bytes = await trio.to_thread.run_sync(self._files.open, path)
        return FileRange(fd, 0, size_bytes, str(path))


async def read_member(members: Members, name: str, limit_bytes: int) -> bytes:
    """A whole small file.

    Raises:
        ContentError: longer than ``limit_bytes``.
        RegistryError: not there, or not readable.
    """
    reader = await members.open(name)
    if reader.size_bytes > limit_bytes:
        raise ContentError(
            f"{reader.origin}: {reader.size_bytes} bytes pass the limit of {limit_bytes}"
        )
    return await reader.fetch(0, reader.size_bytes)


async def read_content(reader: FileRange, descriptor: Descriptor, limit_bytes: int) -> bytes:
    """A whole small blob, checked against its descriptor.

    Raises:
        ContentError: too long, or not the promised bytes.
        RegistryError: not readable.
    """
    check_limit(descriptor, limit_bytes, reader.origin)
    if reader.size_bytes != descriptor.size_bytes:
        raise ContentError(
            f"{reader.origin}: {reader.size_bytes} bytes, wanted {descriptor.size_bytes}"
        )
    raw = await reader.fetch(0, reader.size_bytes)
    await trio.to_thread.run_sync(verify_content, raw, descriptor, reader.origin)
    return raw


def check_limit(descriptor: Descriptor, limit_bytes: int, where: str) -> None:
    """Refuse content that is too large to be held, before it is fetched.

    Raises:
        ContentError: larger than ``limit_bytes``.
    """
    if descriptor.size_bytes > limit_bytes:
        raise ContentError(
            f"{where}: {descriptor.digest}: {descriptor.size_bytes} bytes pass the limit of "
            f"{limit_bytes}"
        )


def lock(fd: int) -> bool:
    """Say that a file is being written, for as long as the process lives and has it open.

    False if another one has said so, or the file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_abandoned(folder: Path, pattern: str = "") -> None:
    """Remove partial files, and folders, whose writers were killed (blocks).

    Args:
        folder: to look in.
        pattern: what their names begin with, after the dot.
    """
    for path in folder.glob(f".{pattern}*{PARTIAL}"):
        with suppress(OSError):
            if path.lstat().st_mtime > time.time() - ABANDONED_S:
                continue
            inside = path / "blobs" if path.is_dir() else path
            fd = os.open(inside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not lock(fd):
                    continue
                if inside is path:
                    path.unlink()
                else:
                    shutil.rmtree(path)
            finally:
                os.close(fd)


async def write_blob(
    target: Path, descriptor: Descriptor, data: AsyncIterable[bytes], where: str
) -> None:
    """Write checked content to ``target``: all of it, on the disk, or nothing.

    Cancelled: nothing is left.

    Raises:
        ContentError: ``data`` gave other bytes than were promised.
        RegistryError: the file cannot be written.
    """
    temporary = target.with_name(f".{target.name[:16]}.{secrets.token_hex(8)}{PARTIAL}")
    verifier = DigestVerifier(
        descriptor.digest, descriptor.size_bytes, f"{where}: {descriptor.digest}"
    )
    with file_errors(temporary):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    lock(fd)

    def take(piece: bytes) -> None:
        verifier.update(piece)
        view = memoryview(piece)
        with file_errors(temporary):
            while view:
                view = view[os.write(fd, view) :]

    def commit() -> None:
        verifier.finish()
        with file_errors(target):
            os.fsync(fd)
            temporary.replace(target)

    try:
        async with aclosing(regroup(data, PIECE_BYTES)) as pieces:
            async for piece in pieces:
                await trio.to_thread.run_sync(take, piece)
        await trio.to_thread.run_sync(commit)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def write_file(target: Path, data: bytes) -> None:
    """Replace a small file in one step (blocks).

    Raises:
        RegistryError: it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with file_errors(target):
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
