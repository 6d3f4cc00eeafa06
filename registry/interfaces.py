"""What registries, layout folders and archives have in common.

A source gives one image (or index), a destination takes one. Content is named by descriptors.
Every method raises ``RegistryError`` subclasses and nothing else for what the world does wrong:
``NotFoundError``, ``DeniedError``, ``TransportError``, ``ContentError``.
Every async method may be cancelled; what was begun is given up and leaves nothing half done.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from registry.credentials import Credentials
from registry.digest import Digest
from registry.health import HostStatus
from registry.manifest import Descriptor
from registry.ranges import Range

DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a registry."""

    plain_http: bool = False
    """Speak HTTP without TLS, also to hosts that are not this machine."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Seconds for an operation with all its tries, anew when it gets on; 0: for ever.

    Steps within it get less, so that there is time for another try: see ``registry.deadlines``.
    """
    user_agent: str = "lazyfs"
    credentials: Credentials | None = None
    """Used for the registry instead of what the credential files say; mirrors never get them."""
    hosts_dirs: tuple[Path, ...] | None = None
    """Folders as containerd's ``certs.d``; None: the usual ones of this machine."""
    worked_before: bool = False
    """Whether the names of the hosts are known to be right: one that does not answer is then tried
    until the time is over, from the beginning."""


DEFAULT_ACCESS = Access()


class BlobReader(Protocol):
    """Random access to one blob; its bytes are UNVERIFIED."""

    @property
    def size_bytes(self) -> int:
        """Length of the blob, as its descriptor promises."""
        ...

    @property
    def origin(self) -> str:
        """Where the bytes come from, for a log line: ``host[:port]`` or a path."""
        ...

    @property
    def ranges_at_once(self) -> int:
        """So many ranges that lie apart, and are not empty, one ``stream`` may give; 1: no more.

        It may change with what is learned of who gives them.
        """
        ...

    async def fetch(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` UNVERIFIED bytes from ``offset`` (both in bytes).

        Raises:
            RegistryError: they could not be had, or the range passes the end of the blob.
        """
        ...

    def stream(
        self, offset: int, length: int, *more: Range
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The same as UNVERIFIED pieces that add up to ``length`` bytes.

        What ``more`` ranges (offset and length) give comes behind it, in their order. Of several,
        whatever fails is not tried again here: each is to be asked for alone then.

        Raises:
            RegistryError: on opening or while reading.
        """
        ...

    def distrust(self, offset: int, length: int) -> str:
        """Report that what a range gave turned out to be wrong; return who gave it, for people.

        Other hosts that have the blob are asked before that one for some time.
        """
        ...


class ImageSource(Protocol):
    """One image that can be read."""

    @property
    def name(self) -> str:
        """Canonical name, for people."""
        ...

    async def resolve(self) -> Descriptor:
        """What the name means now: the descriptor of an index or a manifest."""
        ...

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """The raw bytes of a manifest or index, checked; at most ``MANIFEST_LIMIT_BYTES``."""
        ...

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """A small blob such as a configuration, checked; at most ``limit_bytes``."""
        ...

    async def open_blob(self, descriptor: Descriptor) -> BlobReader:
        """Random access to a blob, for as long as the source is open."""
        ...

    def hosts(self) -> tuple[HostStatus, ...]:
        """How the hosts do that it comes from, none for local files; never waits."""
        ...


class ImageDestination(Protocol):
    """Where one image can be written."""

    @property
    def name(self) -> str:
        """Canonical name, for people."""
        ...

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there already."""
        ...

    async def mount_blob(self, descriptor: Descriptor, source: ImageSource) -> bool:
        """Take the blob from ``source`` without moving its bytes; False when that cannot be."""
        ...

    async def push_blob(
        self, descriptor: Descriptor, data: Callable[[], AsyncIterable[bytes]]
    ) -> None:
        """Write a blob, unless it is there.

        ``data`` gives the bytes from the first one on, and may be called again for another try.

        Raises:
            ContentError: ``data`` gave other bytes than the descriptor promises.
        """
        ...

    async def push_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Write a manifest or index under its digest; what it names must be there before."""
        ...

    async def tag(self, descriptor: Descriptor, raw: bytes) -> None:
        """Write a manifest or index and give it the name of this destination."""
        ...


@runtime_checkable
class ReferrerSource(Protocol):
    """A source that can be asked what refers to a manifest, such as signatures."""

    async def list_referrers(
        self, subject: Digest, artifact_type: str = ""
    ) -> tuple[Descriptor, ...]:
        """Descriptors of manifests that refer to ``subject``; UNPROVEN, perhaps not all.

        Raises:
            RegistryError: nobody can say.
        """
        ...


@runtime_checkable
class ReferrerDestination(Protocol):
    """A destination that keeps manifests which refer to others."""

    async def push_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        """Write a manifest that refers to ``subject``, so that it can be found by it."""
        ...
