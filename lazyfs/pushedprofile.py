"""Startup profiles beside their images: pushed as OCI referrers, and found again.

A profile is a blob of an artifact manifest whose subject is the image's manifest (image-spec,
"Guidelines for Artifact Usage"). Annotations of the artifact name the blob, so that who has the
list of referrers needs only one more request. The newest profile counts. Nothing proves the
list: a profile is a hint, and never more.
"""

import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from lazyfs.documents import Documents, KeptSource, document_name
from lazyfs.errors import ProfileError
from lazyfs.profile.document import (
    MAX_PROFILE_BYTES,
    PROFILE_ARTIFACT_TYPE,
    PROFILE_MEDIA_TYPE,
    Profile,
    decode_profile,
    encode_profile,
)
from lazyfs.resolve import ResolvedImage
from registry.digest import Digest
from registry.errors import ContentError, RegistryError
from registry.interfaces import ImageDestination, ReferrerDestination
from registry.manifest import Descriptor, Manifest, decode, describe
from registry.mediatype import OCI_EMPTY, OCI_MANIFEST

CREATED = "org.opencontainers.image.created"
BLOB_DIGEST = "org.lazyfs.profile.digest"
BLOB_SIZE = "org.lazyfs.profile.size"

_EMPTY = b"{}"


def check_profile(profile: Profile, resolved: ResolvedImage) -> None:
    """Refuse a profile of another image.

    Raises:
        ProfileError: it is.
    """
    if profile.image != str(resolved.descriptor.digest):
        raise ProfileError(
            f"the profile is of the image {profile.image}, {resolved.name} is "
            f"{resolved.descriptor.digest}: record it again"
        )


async def push_profile(
    destination: ImageDestination, profile: Profile, subject: Descriptor, created: str
) -> Digest:
    """Put a profile beside its image; digest of the artifact's manifest.

    Args:
        destination: has the image.
        profile: of the image.
        subject: the image's manifest.
        created: when the profile was made (RFC 3339, UTC): the latest one counts.

    Raises:
        ProfileError: the destination keeps no such things.
        RegistryError: it does not take it.
    """
    if not isinstance(destination, ReferrerDestination):
        raise ProfileError(f"{destination.name}: nothing can be put beside an image in an archive")
    content = encode_profile(profile)
    blob = describe(content, PROFILE_MEDIA_TYPE)
    empty = describe(_EMPTY, OCI_EMPTY)
    for descriptor, data in ((empty, _EMPTY), (blob, content)):

        async def whole(data: bytes = data) -> AsyncIterator[bytes]:
            yield data

        await destination.push_blob(descriptor, whole)
    annotations = {
        CREATED: created,
        BLOB_DIGEST: str(blob.digest),
        BLOB_SIZE: str(blob.size_bytes),
    }
    manifest = Manifest(
        config=empty,
        layers=(blob,),
        artifact_type=PROFILE_ARTIFACT_TYPE,
        subject=Descriptor(subject.media_type, subject.digest, subject.size_bytes),
        annotations=annotations,
    )
    raw = manifest.encode()
    artifact = replace(
        describe(raw, OCI_MANIFEST),
        artifact_type=PROFILE_ARTIFACT_TYPE,
        annotations=annotations,
    )
    await destination.push_referrer(raw, artifact, subject.digest)
    return artifact.digest


def time_of_push() -> str:
    """The time as RFC 3339 has it; ``SOURCE_DATE_EPOCH`` stands in for it."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))


async def find_profile(source: KeptSource, subject: Digest) -> Descriptor | None:
    """The blob of the newest profile beside an image; None: there is none.

    Raises:
        RegistryError: nobody can say.
    """
    found = await source.list_referrers(subject, PROFILE_ARTIFACT_TYPE)
    if not found:
        return None
    newest = max(found, key=lambda entry: (entry.annotations.get(CREATED, ""), str(entry.digest)))
    return _named_blob(newest) or _blob_of(await source.fetch_manifest(newest), newest)


async def fetch_profile(source: KeptSource, blob: Descriptor) -> Profile:
    """The profile that a blob holds.

    Raises:
        ProfileError: it is none.
        RegistryError: it cannot be had.
    """
    return decode_profile(await source.fetch_content(blob, MAX_PROFILE_BYTES))


def _named_blob(artifact: Descriptor) -> Descriptor | None:
    """The blob that an artifact's annotations name; None: they do not."""
    try:
        size = int(artifact.annotations[BLOB_SIZE])
        digest = Digest.parse(artifact.annotations[BLOB_DIGEST])
        return Descriptor(PROFILE_MEDIA_TYPE, digest, size) if size > 0 else None
    except (KeyError, ValueError, ContentError):
        return None


def _blob_of(raw: bytes, artifact: Descriptor) -> Descriptor | None:
    document = decode(raw, artifact.media_type)
    if not isinstance(document, Manifest):
        return None
    blobs = [layer for layer in document.layers if layer.media_type == PROFILE_MEDIA_TYPE]
    return blobs[0] if blobs else None


class KnownProfiles:
    """Which profile an image had the last time: a mount begins with it, and asks behind that."""

    def __init__(self, documents: Documents) -> None:
        """Keep that in ``documents``."""
        self._documents = documents

    async def get(self, image: Digest) -> Descriptor | None:
        """The blob of the profile; None if none is known."""
        raw = await self._documents.read(_name(image))
        if raw is None:
            return None
        try:
            values = json.loads(raw)
            digest = Digest.parse(values["digest"])
            return Descriptor(PROFILE_MEDIA_TYPE, digest, int(values["size"]))
        except (ValueError, KeyError, TypeError, RegistryError):
            self._documents.discard(_name(image))
            return None

    async def put(self, image: Digest, blob: Descriptor | None) -> None:
        """Remember the blob of the profile, or that there is none."""
        if blob is None:
            self._documents.discard(_name(image))
            return
        values = {"digest": str(blob.digest), "size": blob.size_bytes}
        await self._documents.write(_name(image), json.dumps(values).encode())


def _name(image: Digest) -> str:
    return document_name("profile", image)
