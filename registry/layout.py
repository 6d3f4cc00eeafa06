"""An OCI image layout (image-spec, image-layout.md): a folder that is read, or written.

``LayoutSource`` also serves archives, which hold the same files under the same names.
"""

import fcntl
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from registry.digest import Digest
from registry.errors import ContentError, NotFoundError, TransportError
from registry.files import (
    PARTIAL,
    FileRange,
    Members,
    file_errors,
    read_content,
    read_member,
    remove_abandoned,
    write_blob,
    write_file,
)
from registry.health import HostStatus
from registry.interfaces import ImageSource
from registry.jsondoc import encode_json, parse_object, take_string
from registry.manifest import (
    MANIFEST_LIMIT_BYTES,
    Descriptor,
    Index,
    decode_index,
    describe,
    media_type_of,
    verify_content,
)
from registry.mediatype import (
    ANNOTATION_CONTAINERD_NAME,
    ANNOTATION_REF_NAME,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
)
from registry.reference import LocalName
from registry.referrertag import add_referrer, fallback_tag, is_fallback_tag

INDEX_FILE = "index.json"
MARKER_FILE = "oci-layout"
MARKER_LIMIT_BYTES = 4096
LAYOUT_VERSION = "1.0.0"
LOCK_POLL_S = 0.05
NAMELESS: Mapping[str, None] = {ANNOTATION_REF_NAME: None, ANNOTATION_CONTAINERD_NAME: None}
"""Takes the names of a layout's entry away: they are the layout's, not the image's."""


def blob_name(digest: Digest) -> str:
    """Name of a blob's file, relative to the layout."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def choose_entry(index: Index, name: LocalName) -> Descriptor:
    """The entry of ``index.json`` that a name without digest means.

    Without a tag: the only entry, or the only one that has no tag.

    Raises:
        NotFoundError: none; the message lists the tags that there are.
        ContentError: several.
    """
    tags = [entry.annotations.get(ANNOTATION_REF_NAME) for entry in index.manifests]
    if name.tag is None:
        found = [e for e, tag in zip(index.manifests, tags, strict=True) if tag is None]
        images = [
            entry
            for entry, tag in zip(index.manifests, tags, strict=True)
            if tag is None or not is_fallback_tag(tag)
        ]
        if len(images) == 1:
            found = images
    else:
        found = [e for e, tag in zip(index.manifests, tags, strict=True) if tag == name.tag]
        found = found or [
            entry
            for entry in index.manifests
            if entry.annotations.get(ANNOTATION_CONTAINERD_NAME) == name.tag
        ]
    if len({entry.digest for entry in found}) > 1:
        raise ContentError(f"{name}: {len(found)} images of that name; give one by @digest")
    if not found:
        there = ", ".join(repr(tag) for tag in tags[:20] if tag) or "none"
        raise NotFoundError(f"{name}: no such image (tags: {there})", status=404)
    return found[0]


def entry_tagged(index: Index, tag: str) -> Descriptor | None:
    """The entry of a layout's index that has a tag."""
    for entry in index.manifests:
        if entry.annotations.get(ANNOTATION_REF_NAME) == tag:
            return entry
    return None


class LayoutSource:
    """One image of a layout folder or of an archive of one (an ``ImageSource``)."""

    def __init__(self, name: LocalName, members: Members) -> None:
        self._name = name
        self._members = members

    @property
    def name(self) -> str:
        """As ``ImageSource.name``."""
        return str(self._name)

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``."""
        await self._check_marker()
        raw = await read_member(self._members, INDEX_FILE, MANIFEST_LIMIT_BYTES)
        index = decode_index(raw, OCI_INDEX)
        digest = self._name.digest
        if digest is None:
            return choose_entry(index, self._name).annotated(NAMELESS)
        for entry in index.manifests:
            if entry.digest == digest:
                return entry.annotated(NAMELESS)
        return await self._describe(digest)

    async def _check_marker(self) -> None:
        try:
            raw = await read_member(self._members, MARKER_FILE, MARKER_LIMIT_BYTES)
        except NotFoundError as error:
            raise NotFoundError(f"{self._name}: not an OCI layout ({error})", status=404) from error
        check_marker(raw, self.name)

    async def _describe(self, digest: Digest) -> Descriptor:
        """A manifest that ``index.json`` does not name, such as one inside an index."""
        raw = await read_member(self._members, blob_name(digest), MANIFEST_LIMIT_BYTES)
        media_type = media_type_of(raw)
        if media_type not in MANIFESTS | INDEXES:
            raise ContentError(f"{self._name}: is not a manifest that says its media type")
        return Descriptor(media_type, digest, len(raw))

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        return await self.fetch_content(descriptor, MANIFEST_LIMIT_BYTES)

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        reader = await self._members.open(blob_name(descriptor.digest))
        return await read_content(reader, descriptor, limit_bytes)

    async def open_blob(self, descriptor: Descriptor) -> FileRange:
        """As ``ImageSource.open_blob``."""
        reader = await self._members.open(blob_name(descriptor.digest))
        if reader.size_bytes != descriptor.size_bytes:
            raise ContentError(
                f"{reader.origin}: {reader.size_bytes} bytes, wanted {descriptor.size_bytes}"
            )
        return reader

    async def list_referrers(
        self, subject: Digest, artifact_type: str = ""
    ) -> tuple[Descriptor, ...]:
        """As ``ReferrerSource.list_referrers``: by the fallback tag, for layouts keep no lists."""
        raw = await read_member(self._members, INDEX_FILE, MANIFEST_LIMIT_BYTES)
        entry = entry_tagged(decode_index(raw, OCI_INDEX), fallback_tag(subject))
        if entry is None:
            return ()
        found = decode_index(await self.fetch_manifest(entry), OCI_INDEX).manifests
        return tuple(d for d in found if artifact_type in ("", d.artifact_type))

    def hosts(self) -> tuple[HostStatus, ...]:
        """As ``ImageSource.hosts``: none."""
        return ()


def check_marker(raw: bytes, where: str) -> None:
    """Check the content of the ``oci-layout`` file.

    Raises:
        ContentError: not JSON, or another version.
    """
    marker = parse_object(raw, f"{where}: {MARKER_FILE}", MARKER_LIMIT_BYTES)
    version = take_string(marker, "imageLayoutVersion", where)
    if version != LAYOUT_VERSION:
        raise ContentError(f"{where}: OCI layout version {version[:20]!r} is not known")


def _is_foreign(path: Path) -> bool:
    """Whether a path of a folder is nothing that the making of a layout leaves there."""
    return path.name != "blobs" and not path.name.endswith(PARTIAL)


class LayoutDestination:
    """One image written into a layout folder (an ``ImageDestination``).

    Blobs come whole or not at all; ``index.json`` is replaced in one step under a lock, and what
    other tags it has stays. A failed run leaves blobs that nothing names, as in any registry.
    """

    def __init__(self, name: LocalName, root: Path, timeout_s: float) -> None:
        self._name = name
        self._root = root
        self._timeout_s = timeout_s or float("inf")

    @property
    def name(self) -> str:
        """As ``ImageDestination.name``."""
        return str(self._name)

    def prepare(self) -> None:
        """Make the folder a layout, if it is not one (blocks).

        Raises:
            RegistryError: it is a folder of something else, or cannot be written.
        """
        marker = self._root / MARKER_FILE
        with file_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            if marker.exists():
                check_marker(marker.read_bytes()[: MARKER_LIMIT_BYTES + 1], str(self._root))
            elif any(_is_foreign(path) for path in self._root.iterdir()):
                raise ContentError(f"{self._root}: holds something else than an OCI layout")
            for algorithm in ("sha256", "sha512"):
                blobs = self._root / "blobs" / algorithm
                blobs.mkdir(parents=True, exist_ok=True)
                remove_abandoned(blobs)
        remove_abandoned(self._root)
        if not marker.exists():
            write_file(marker, encode_json({"imageLayoutVersion": LAYOUT_VERSION}))

    def _path(self, digest: Digest) -> Path:
        return self._root / blob_name(digest)

    async def has_blob(self, descriptor: Descriptor) -> bool:
        """As ``ImageDestination.has_blob``."""

        def look() -> bool:
            path = self._path(descriptor.digest)
            with file_errors(path):
                return path.is_file() and path.stat().st_size == descriptor.size_bytes

        return await trio.to_thread.run_sync(look)

    async def mount_blob(self, descriptor: Descriptor, source: ImageSource) -> bool:
        """As ``ImageDestination.mount_blob``: only what is there already."""
        del source  # a hard link would tie the fate of two layouts together
        return await self.has_blob(descriptor)

    async def push_blob(
        self, descriptor: Descriptor, data: Callable[[], AsyncIterable[bytes]]
    ) -> None:
        """As ``ImageDestination.push_blob``."""
        if not await self.has_blob(descriptor):
            await write_blob(self._path(descriptor.digest), descriptor, data(), self.name)

    async def push_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """As ``ImageDestination.push_manifest``."""

        async def whole() -> AsyncIterator[bytes]:
            yield raw

        await self.push_blob(descriptor, whole)

    async def tag(self, descriptor: Descriptor, raw: bytes) -> None:
        """As ``ImageDestination.tag``."""
        if self._name.digest not in (None, descriptor.digest):
            raise ContentError(f"{self._name}: the image has digest {descriptor.digest}")
        await self.push_manifest(raw, descriptor)
        entry = descriptor.annotated({**NAMELESS, ANNOTATION_REF_NAME: self._name.tag})
        async with self._locked():
            await trio.to_thread.run_sync(self._set_entry, entry)

    async def push_referrer(self, raw: bytes, descriptor: Descriptor, subject: Digest) -> None:
        """As ``ReferrerDestination.push_referrer``: by the fallback tag."""
        await self.push_manifest(raw, descriptor)
        async with self._locked():
            known = entry_tagged(await trio.to_thread.run_sync(self._index), fallback_tag(subject))
            index = Index(())
            if known is not None:
                path = self._path(known.digest)
                with file_errors(path):
                    content = path.read_bytes()
                verify_content(content, known, self.name)
                index = decode_index(content, OCI_INDEX)
            changed = add_referrer(index, descriptor).encode()
            entry = describe(changed, OCI_INDEX)
            await self.push_manifest(changed, entry)
            entry = entry.annotated({ANNOTATION_REF_NAME: fallback_tag(subject)})
            await trio.to_thread.run_sync(self._set_entry, entry)

    def _index(self) -> Index:
        path = self._root / INDEX_FILE
        with file_errors(path):
            raw = path.read_bytes() if path.exists() else b""
        return decode_index(raw, OCI_INDEX) if raw else Index(())

    def _set_entry(self, entry: Descriptor) -> None:
        path = self._root / INDEX_FILE
        index = self._index()
        tag = entry.annotations.get(ANNOTATION_REF_NAME)
        kept = [e for e in index.manifests if e.annotations.get(ANNOTATION_REF_NAME) != tag]
        write_file(path, replace(index, manifests=(*kept, entry)).encode())

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        with file_errors(self._root):
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with trio.move_on_after(self._timeout_s) as deadline:
                while True:
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await trio.sleep(LOCK_POLL_S)
            if deadline.cancelled_caught:
                raise TransportError(f"{self._root}: another process holds its lock")
            yield
        finally:
            os.close(fd)
