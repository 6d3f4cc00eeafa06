"""The files of one unpacked layer.

``layer.erofs``             the image, the dm-verity tree behind it; there only when it is whole
``layer.erofs.dmverity``    containerd's sidecar: root hash and where the tree begins
``layer.erofs.partial``     the image while it is being unpacked
``layer.erofs.journal``     which of its chunks are there

The sidecar comes before the image gets its name: an image that has its name and lacks its
sidecar would be mounted without verification.
"""

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lazyfs.errors import UnpackError
from lazyfs.layer.contentfile import ContentFile
from lazyfs.unpack.results import Sidecar
from registry.digest import Digest

IMAGE_NAME = "layer.erofs"
DEVICE_NAME = "device.blob"

_RECORD = struct.Struct("<I32s")
_HEADER_BYTES = 256


class LayerFolder:
    """One layer's folder, made if it is missing."""

    def __init__(self, path: Path, name: str = IMAGE_NAME) -> None:
        """Name the files in ``path``; a blob that is no image itself has another ``name``."""
        self.image = path / name
        self.sidecar = path / f"{name}.dmverity"
        self._path = path
        self._partial = path / f"{name}.partial"
        self._journal = path / f"{name}.journal"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes from unpacking into it.

        Raises:
            UnpackError: one does.
            OSError: the folder cannot be made.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnpackError(f"{self._path}: another process unpacks there") from None
            yield
        finally:
            os.close(descriptor)

    def is_finished(self) -> bool:
        """Whether the image has its name."""
        return self.image.exists()

    @contextmanager
    def finished(self) -> Iterator[ContentFile]:
        """The finished image, for reading.

        Raises:
            OSError: it cannot be opened.
        """
        descriptor = os.open(self.image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield ContentFile(descriptor, str(self.image))
        finally:
            os.close(descriptor)

    @contextmanager
    def partial(self) -> Iterator[ContentFile]:
        """The unfinished image, for reading and writing; empty if there was none.

        Raises:
            OSError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._partial, flags, 0o644)
        try:
            yield ContentFile(descriptor, str(self._partial))
        finally:
            os.close(descriptor)

    @contextmanager
    def journal(self, identity: "Identity") -> Iterator["Journal"]:
        """What is known of the unfinished image; nothing if it is one of another layer.

        Raises:
            OSError: it cannot be read or written.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._journal, flags, 0o644)
        try:
            yield Journal(descriptor, str(self._journal), identity)
        finally:
            os.close(descriptor)

    def read_sidecar(self) -> Sidecar | None:
        """What the sidecar says; None without one.

        Raises:
            UnpackError: it is none of containerd's form.
        """
        try:
            document = json.loads(self.sidecar.read_bytes())
            root = bytes.fromhex(document["roothash"])
            return Sidecar(root.hex(), int(document["hashoffset"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UnpackError(f"{self.sidecar}: not a dm-verity sidecar ({error!r})") from error

    def finish(self, file: ContentFile, sidecar: Sidecar | None) -> None:
        """Give the unfinished image its name (blocks until it is on the disk).

        Raises:
            OSError: the disk failed.
        """
        os.fsync(file.fd)
        if sidecar is None:
            self.sidecar.unlink(missing_ok=True)
        else:
            self._write_sidecar(sidecar)
        self._partial.rename(self.image)
        self._journal.unlink(missing_ok=True)
        _sync_folder(self._path)

    def give_up(self) -> None:
        """Remove an unfinished image that turned out to be wrong."""
        self._partial.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _write_sidecar(self, sidecar: Sidecar) -> None:
        document = {"roothash": sidecar.root_hash, "hashoffset": sidecar.hash_offset}
        temporary = self.sidecar.with_name(f"{self.sidecar.name}.partial")
        with temporary.open("w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.sidecar)


class Identity(NamedTuple):
    """What an unfinished image is one of."""

    layer: Digest
    content_size_bytes: int
    chunks: int

    def header(self) -> bytes:
        """The first bytes of a journal."""
        text = f"lazyfs unpack 1 {self.layer} {self.content_size_bytes} {self.chunks}\n"
        return text.encode().ljust(_HEADER_BYTES, b" ")


class Journal:
    """Which chunks are in the file, each with a digest if nothing else can prove it.

    A record is written when its chunk is. It is a hint and never believed: who resumes checks
    the chunk.
    """

    def __init__(self, descriptor: int, path: str, identity: Identity) -> None:
        """Read an open journal; start it anew if it is of something else."""
        self._descriptor = descriptor
        self._path = path
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        header = identity.header()
        self.resumes = data.startswith(header)
        """Whether there is anything to go on with."""
        self.digests: dict[int, bytes] = {}
        if self.resumes:
            whole = len(data) - (len(data) - len(header)) % _RECORD.size
            records = _RECORD.iter_unpack(data[len(header) : whole])
            self.digests = {index: digest for index, digest in records if index < identity.chunks}
            os.ftruncate(descriptor, whole)  # a torn record would shift all that follow
        else:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, header)

    def add(self, index: int, digest: bytes) -> None:
        """Note that a chunk is there; any thread.

        Args:
            index: of the chunk.
            digest: SHA-256 of the chunk, or nothing where a tree can prove it.

        Raises:
            OSError: the disk is full.
        """
        try:
            os.write(self._descriptor, _RECORD.pack(index, digest))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from error


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
