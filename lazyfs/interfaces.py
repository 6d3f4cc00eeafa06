"""What the drivers promise each other.

Trust is in the types: ``BlobSource.fetch`` gives UNVERIFIED bytes, ``VerifiedReader.read``
gives bytes that were proven. Only ``lazyfs.layer`` turns the first into the second.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from lazyfs.model import Attributes, ByteRange, DirectoryEntry, NodeId


class BlobSource(Protocol):
    """One blob somewhere else, as random access to unverified bytes."""

    @property
    def size_bytes(self) -> int:
        """Length of the blob, as its descriptor promises."""
        ...

    @property
    def origin(self) -> str:
        """Where the bytes come from, for a log line: a host name or a path."""
        ...

    @property
    def ranges_at_once(self) -> int:
        """So many ranges that lie apart, and are not empty, one ``stream`` may give; 1: no more.

        It may change with what is learned of who gives them.
        """
        ...

    async def fetch(self, where: ByteRange) -> bytes:
        """Return exactly ``where.length`` UNVERIFIED bytes.

        Raises:
            SourceUnavailableError: no answer, a wrong one, or a short one.

        Cancelled: nothing is kept.
        """
        ...

    def stream(self, *ranges: ByteRange) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open ranges, one or more, as a stream of UNVERIFIED pieces that add up to them in order.

        Of several, whatever fails is not tried again: each is to be asked for alone then.

        Raises:
            SourceUnavailableError: on opening or while reading.
        """
        ...

    def distrust(self, where: ByteRange) -> str:
        """Report that what ``where`` gave is not what was promised; return who gave it.

        Another host that has the blob is asked the next time, if there is one.
        """
        ...


class Notebook(Protocol):
    """Small notes on disk, which a later mount may find again. The disk is not to be trusted."""

    async def read(self, name: str) -> bytes | None:
        """A note as it was kept; None if it is not there."""
        ...

    async def write(self, name: str, content: bytes) -> None:
        """Keep a note, if that is possible."""
        ...


class VerifiedReader(Protocol):
    """Random access to the verified bytes of one device of an image."""

    @property
    def size_bytes(self) -> int:
        """Length of the device in bytes."""
        ...

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """As ``read`` if the bytes are at hand, else None; never blocks."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` VERIFIED bytes at ``offset``.

        Raises:
            TruncatedRecordError: the range passes the end of the device.
            VerificationError: the bytes are not those that were promised.
            SourceUnavailableError: the bytes could not be had in time.

        Cancelled: a fetch that was begun goes on for other readers.
        """
        ...


class LayerReader(VerifiedReader, Protocol):
    """A reader whose bytes are also given to who remembers them itself, such as the kernel."""

    def read_once_nowait(self, offset: int, length: int) -> bytes | None:
        """As ``read_once`` if the bytes are at hand, else None; never blocks."""
        ...

    async def read_once(self, offset: int, length: int) -> bytes:
        """As ``read``, without remembering anything: the same bytes are not asked for soon."""
        ...

    async def read_proven(self, offset: int, length: int) -> bytes:
        """As ``read_once``, for ourselves and not for a reader: neither counted nor recorded.

        The range is inside the image and not empty.
        """
        ...

    def has_gaps(self) -> bool:
        """Whether what lies beside a read may have to be fetched; quick: looks at a few places."""
        ...


class ImageTree(Protocol):
    """A read-only tree of files, as FUSE serves it.

    Node ids are opaque, stable for the life of the image (also over a restart of the
    daemon), and the root is ``ROOT_NODE``. Every method raises ``ImageFormatError``,
    ``VerificationError`` or ``SourceUnavailableError`` where the image or the network fails.
    """

    @property
    def grows(self) -> bool:
        """Whether names may come, so that nobody is to remember a listing."""
        ...

    async def lookup(self, parent: NodeId, name: bytes) -> NodeId:
        """The object that ``name`` means in a directory.

        Raises:
            NoSuchEntryError, NotADirectoryNodeError.
        """
        ...

    async def parent(self, directory: NodeId) -> NodeId:
        """The directory that a directory is in; the root is in itself.

        Asked for by who has a file handle of it and nothing else.

        Raises:
            NoSuchEntryError: the tree cannot tell.
            NotADirectoryNodeError.
        """
        ...

    async def attributes(self, node: NodeId) -> Attributes:
        """What ``stat`` shows."""
        ...

    async def entries(self, directory: NodeId, start: int) -> Sequence[DirectoryEntry]:
        """Some entries from position ``start`` (0: the first); none at the end.

        ``.`` and ``..`` are not among them.

        Raises:
            NotADirectoryNodeError.
        """
        ...

    async def listed_directory(self, directory: NodeId, entry: DirectoryEntry) -> Attributes | None:
        """What ``stat`` shows of a directory that ``entries`` gave, if it is sound and at hand.

        Sound is what ``lookup`` would lead to. Whatever is wrong is for him who asks for it:
        nothing is raised, and nothing is fetched.
        """
        ...

    async def read(self, node: NodeId, offset: int, length: int) -> bytes:
        """File data; short only at the end of the file.

        Raises:
            NotAFileNodeError.
        """
        ...

    async def link_target(self, node: NodeId) -> bytes:
        """Target of a symbolic link.

        Raises:
            NotASymlinkNodeError.
        """
        ...

    async def xattrs(self, node: NodeId) -> Mapping[bytes, bytes]:
        """All extended attributes by full name, such as ``b"user.x"``."""
        ...
