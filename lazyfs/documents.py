"""What mounting an image again needs, kept on disk: manifests, configuration, chunk tables.

With them a mount comes to life without its registry: nothing of an image is asked twice, for its
content never changes. What is kept under a digest is proven by it when it is read back; what
lies in a blob is proven by who asked for it, as if the blob's host had sent it. Only what a tag
means may change. So a registry is asked for that, and its last answer used when there is none.
"""

import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio

from cache.documents import DocumentFolder
from cache.errors import CacheError
from lazyfs.interfaces import BlobSource
from lazyfs.model import ByteRange
from registry.digest import Digest
from registry.errors import ContentError, ResponseError, TransportError
from registry.health import HostStatus
from registry.interfaces import BlobReader, ImageSource, ReferrerSource
from registry.manifest import Descriptor, media_type_of, verify_content
from registry.reference import Reference, parse_image_name

FOLDER_NAME = "documents"
"""In the cache folder, beside the chunks."""

LIMIT_BYTES = 256 << 20
"""All documents together, after each mount."""

GATEWAY_STATUSES = frozenset({502, 503, 504})
"""A proxy says with these that the registry itself did not answer."""

RESERVE_S = 1.0
"""What is left of the time for opening an image when a tag's host has not answered."""

log = logging.getLogger(__name__)


class Documents:
    """Documents on disk for tasks of trio; without a folder nothing is kept."""

    def __init__(self, folder: DocumentFolder | None) -> None:
        """Keep documents in ``folder``."""
        self._folder = folder
        self._failed = False

    async def read(self, name: str) -> bytes | None:
        """A document as it was kept; None if it is not there. It is not proven."""
        if self._folder is None:
            return None
        return await trio.to_thread.run_sync(self._folder.read, name)

    async def write(self, name: str, content: bytes) -> None:
        """Keep a document, if that is possible."""
        if self._folder is None:
            return
        try:
            await trio.to_thread.run_sync(self._folder.write, name, content)
        except CacheError as error:
            if not self._failed:
                log.warning("a restart may need the registry: %s", error)
            self._failed = True

    def discard(self, name: str) -> None:
        """Drop a document that turned out to be wrong."""
        if self._folder is not None:
            self._folder.discard(name)

    async def trim(self) -> None:
        """Keep to the limit."""
        if self._folder is not None:
            await trio.to_thread.run_sync(self._folder.trim, LIMIT_BYTES)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name meant."""

    descriptor: Descriptor
    when_s: float
    """Seconds since the epoch."""
    name: str = ""
    """Of the image, for ``lazyfs cache ls``."""

    def to_json(self) -> bytes:
        """The document."""
        return json.dumps(
            {
                "mediaType": self.descriptor.media_type,
                "digest": str(self.descriptor.digest),
                "size": self.descriptor.size_bytes,
                "when": self.when_s,
                "name": self.name,
            }
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Resolution":
        """What ``to_json`` wrote.

        Raises:
            ValueError, KeyError, TypeError, ContentError: something else.
        """
        values = json.loads(text)
        digest = Digest.parse(str(values["digest"]))
        descriptor = Descriptor(str(values["mediaType"]), digest, int(values["size"]))
        name = str(values.get("name", ""))  # older versions did not write it
        return cls(descriptor, float(values["when"]), name)


class KeptSource:
    """An ``ImageSource`` that asks another one only for what is not kept."""

    def __init__(self, source: ImageSource, documents: Documents) -> None:
        """Keep in ``documents`` what ``source`` says."""
        self._source = source
        self._documents = documents
        self._reference = _reference(source.name)
        self.note: str | None = None
        """What a user should know about how the name was resolved."""

    @property
    def name(self) -> str:
        """As ``ImageSource.name``."""
        return self._source.name

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``; a digest is not asked about, an unreachable tag remembered.

        Raises:
            RegistryError: the name means nothing, or nobody can say what.
        """
        reference = self._reference
        name = "name-" + hashlib.sha256(self.name.encode()).hexdigest()
        if reference is None:
            descriptor = await self._source.resolve()
            await self._remember(name, descriptor)  # for "lazyfs cache ls" only
            return descriptor
        kept = await self._resolution(name)
        if reference.digest is not None:
            if kept is not None and kept.descriptor.digest == reference.digest:
                return kept.descriptor
            found = await self._by_digest(reference.digest)
            if found is not None:
                return found
            kept = None
        try:
            descriptor = await self._ask(patient=kept is None)
        except (TransportError, ResponseError, trio.TooSlowError) as error:
            answered = isinstance(error, ResponseError) and error.status not in GATEWAY_STATUSES
            if kept is None or answered:
                raise
            then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept.when_s))
            why = str(error) or f"no answer from {reference.endpoint}"
            self.note = (
                f"the registry cannot be reached ({why}): this is what {self.name} meant on {then}"
            )
            log.warning("%s", self.note)
            return kept.descriptor
        await self._remember(name, descriptor)
        return descriptor

    async def _remember(self, name: str, descriptor: Descriptor) -> None:
        meant = Resolution(descriptor, time.time(), self.name)
        await self._documents.write(name, meant.to_json())

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        return await self._proven("manifest", descriptor, self._source.fetch_manifest)

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        if descriptor.size_bytes > limit_bytes:
            return await self._source.fetch_content(descriptor, limit_bytes)  # which refuses it

        async def fetch(descriptor: Descriptor) -> bytes:
            return await self._source.fetch_content(descriptor, limit_bytes)

        return await self._proven("content", descriptor, fetch)

    async def open_blob(self, descriptor: Descriptor) -> BlobReader:
        """As ``ImageSource.open_blob``."""
        return await self._source.open_blob(descriptor)

    async def list_referrers(
        self, subject: Digest, artifact_type: str = ""
    ) -> tuple[Descriptor, ...]:
        """As ``ReferrerSource.list_referrers``; none where nobody keeps such lists."""
        if not isinstance(self._source, ReferrerSource):
            return ()
        return await self._source.list_referrers(subject, artifact_type)

    def hosts(self) -> tuple[HostStatus, ...]:
        """As ``ImageSource.hosts``."""
        return self._source.hosts()

    async def _ask(self, *, patient: bool) -> Descriptor:
        """Resolve at the source; impatient, in time to do something else instead.

        Raises:
            RegistryError: as ``resolve``.
            trio.TooSlowError: no answer in time.
        """
        if patient:
            return await self._source.resolve()
        with trio.fail_at(trio.current_effective_deadline() - RESERVE_S):
            return await self._source.resolve()

    async def _by_digest(self, digest: Digest) -> Descriptor | None:
        """The descriptor of a manifest or index that is kept, whichever it is."""
        raw = await self._documents.read(document_name("manifest", digest))
        if raw is None or Digest.of(raw, digest.algorithm) != digest:
            return None
        media_type = media_type_of(raw)
        return Descriptor(media_type, digest, len(raw)) if media_type else None

    async def _resolution(self, name: str) -> Resolution | None:
        text = await self._documents.read(name)
        if text is None:
            return None
        try:
            return Resolution.from_json(text)
        except (ValueError, KeyError, TypeError, ContentError):
            self._documents.discard(name)
            return None

    async def _proven(
        self, kind: str, descriptor: Descriptor, fetch: Callable[[Descriptor], Awaitable[bytes]]
    ) -> bytes:
        """Content that has its digest, wherever it comes from."""
        name = document_name(kind, descriptor.digest)
        raw = await self._documents.read(name)
        if raw is not None:
            try:
                verify_content(raw, descriptor, f"{self.name}, as it was kept")
            except ContentError as error:
                log.warning("%s; fetching it again", error)
                self._documents.discard(name)
            else:
                return raw
        raw = await fetch(descriptor)
        await self._documents.write(name, raw)
        return raw


class KeptSpans:
    """A ``BlobSource`` that keeps what is fetched of it while a layer is opened.

    What is asked for then is the same each time: chunk tables and the top of a dm-verity tree.
    """

    def __init__(self, source: BlobSource, digest: Digest, documents: Documents) -> None:
        """Keep spans of the blob ``digest``, which ``source`` gives."""
        self._source = source
        self._digest = digest
        self._documents: Documents | None = documents
        self._from_documents: set[str] = set()

    @property
    def size_bytes(self) -> int:
        """As ``BlobSource.size_bytes``."""
        return self._source.size_bytes

    @property
    def origin(self) -> str:
        """As ``BlobSource.origin``."""
        return self._source.origin

    @property
    def ranges_at_once(self) -> int:
        """As ``BlobSource.ranges_at_once``."""
        return self._source.ranges_at_once

    async def fetch(self, where: ByteRange) -> bytes:
        """As ``BlobSource.fetch``: UNVERIFIED bytes, perhaps as they were kept."""
        if self._documents is None:
            return await self._source.fetch(where)
        name = self._name(where)
        data = await self._documents.read(name)
        if data is not None and len(data) == where.length:
            self._from_documents.add(name)
            return data
        data = await self._source.fetch(where)
        await self._documents.write(name, data)
        return data

    def stream(self, *ranges: ByteRange) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As ``BlobSource.stream``; it is not kept."""
        return self._source.stream(*ranges)

    def distrust(self, where: ByteRange) -> str:
        """As ``BlobSource.distrust``; what is not to be trusted is not kept."""
        name = self._name(where)
        if self._documents is not None:
            self._documents.discard(name)
            if name in self._from_documents:
                self._from_documents.discard(name)
                return "the cache folder"
        return self._source.distrust(where)

    def give_up_kept(self) -> bool:
        """Drop what was taken from the disk; whether anything was (then try again)."""
        used, self._from_documents = self._from_documents, set()
        for name in used:
            if self._documents is not None:
                self._documents.discard(name)
        return bool(used)

    def opened(self) -> None:
        """The layer is open: what is asked for from now on is file data, and kept elsewhere."""
        self._documents = None

    def _name(self, where: ByteRange) -> str:
        return f"{document_name('blob', self._digest)}-{where.offset}-{where.length}"


def document_name(kind: str, digest: Digest) -> str:
    """What a document is kept under: ``manifest``, ``content`` or ``blob`` of a digest."""
    return f"{kind}-{digest.algorithm}-{digest.encoded}"


def _reference(name: str) -> Reference | None:
    """The name, if it is that of an image in a registry."""
    parsed = parse_image_name(name)
    return parsed if isinstance(parsed, Reference) else None
