"""Images in a tar archive: an OCI layout read without unpacking it, or written in one step."""

import os
import secrets
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from glob import escape
from pathlib import Path
from typing import BinaryIO

import trio

from registry.errors import ContentError, NotFoundError
from registry.files import (
    PARTIAL,
    PIECE_BYTES,
    FileRange,
    OpenFiles,
    file_errors,
    lock,
    remove_abandoned,
)
from registry.layout import INDEX_FILE, LayoutDestination
from registry.reference import LocalName
from registry.tarindex import Member, find, scan

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
)


class ArchiveMembers:
    """The files inside an uncompressed tar archive, by offset (``Members``)."""

    def __init__(self, path: Path, files: OpenFiles) -> None:
        self._path = path
        self._files = files
        self._fd = -1
        self._members: dict[str, Member] = {}

    @classmethod
    async def read(cls, path: Path, files: OpenFiles) -> "ArchiveMembers":
        """Open an archive and read its headers.

        Raises:
            RegistryError: it cannot be read, or is not an uncompressed tar archive.
        """
        archive = cls(path, files)
        await trio.to_thread.run_sync(archive._load)
        return archive

    def _load(self) -> None:
        self._fd, size_bytes = self._files.open(self._path)
        with file_errors(self._path):
            start = os.pread(self._fd, 8, 0)
            for magic, kind, program in _COMPRESSED:
                if start.startswith(magic):
                    raise ContentError(
                        f"{self._path}: compressed with {kind}; decompress it first ({program})"
                    )
            steps = scan(size_bytes)
            try:
                wanted = next(steps)
                while True:
                    wanted = steps.send(os.pread(self._fd, wanted.length, wanted.offset))
            except StopIteration as stop:
                self._members = stop.value
            except ContentError as error:
                raise ContentError(f"{self._path}: {error}") from error

    async def open(self, name: str) -> FileRange:
        """As ``Members.open``; links inside the archive are followed."""
        member = find(self._members, name)
        if member is None:
            raise NotFoundError(f"{self._path}: holds no {name[:120]!r}", status=404)
        return FileRange(self._fd, member.offset, member.size_bytes, f"{self._path}")


@asynccontextmanager
async def open_archive_destination(
    name: LocalName, target: Path, timeout_s: float
) -> AsyncIterator[LayoutDestination]:
    """A layout in a folder beside ``target`` that becomes the archive at the end.

    The archive appears in one step; on an exception nothing is left. It is deterministic: the
    same content gives the same bytes.

    Raises:
        RegistryError: it cannot be written, or no image was tagged.
    """
    folder = target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    destination = LayoutDestination(name, folder, timeout_s)

    def prepare() -> int:
        remove_abandoned(target.parent, f"{escape(target.name)}.")
        destination.prepare()
        fd = os.open(folder / "blobs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lock(fd)
        return fd

    fd = -1
    try:
        fd = await trio.to_thread.run_sync(prepare)
        yield destination
        if not (folder / INDEX_FILE).exists():
            raise ContentError(f"{name}: no image was written")
        await trio.to_thread.run_sync(_pack, folder, target)
    finally:
        if fd >= 0:
            os.close(fd)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


class _Cancellable:
    """A file whose reader ends when the task that waits for its thread is cancelled."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, length: int = -1, /) -> bytes:
        trio.from_thread.check_cancelled()
        return self._file.read(length)


def _pack(folder: Path, target: Path) -> None:
    """Write ``target`` from what is in ``folder``; runs in a worker thread."""
    temporary = folder / "archive.tar.partial"
    with file_errors(target):
        paths = sorted(
            path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
        )
        with temporary.open("xb") as file:
            with tarfile.TarFile(
                fileobj=file, mode="w", format=tarfile.PAX_FORMAT, copybufsize=PIECE_BYTES
            ) as archive:
                for path in paths:
                    member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                    member.size = path.stat().st_size
                    member.mode = 0o644
                    with path.open("rb") as content:
                        archive.addfile(member, _Cancellable(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
