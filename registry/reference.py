"""Names of images, as skopeo writes them.

    [docker://]HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]    Reference
    oci:DIR[:TAG][@DIGEST]                              LocalName
    oci-archive:FILE[:TAG][@DIGEST]
    docker-archive:FILE[:TAG]

Grammar: distribution-spec, "Pulling manifests", and the reference grammar of Docker's distribution.
``busybox`` means ``docker.io/library/busybox:latest``, as everywhere.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from registry.digest import Digest
from registry.errors import ContentError, InvalidReferenceError

NAME_LIMIT = 4096
REPOSITORY_LIMIT = 255

DOCKER_HUB = "docker.io"
DOCKER_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
DOCKER_HUB_ENDPOINT = "registry-1.docker.io"
DEFAULT_TAG = "latest"

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\])(?::[0-9]{{1,5}})?", re.ASCII
)
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*)*", re.ASCII
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_LAYOUT_TAG = re.compile(r"[!-~]{1,384}", re.ASCII)
"""``org.opencontainers.image.ref.name``: looser than image-spec's annotations.md, as others are."""


class Transport(Enum):
    """Where a local image lies."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. Where both tag and digest are given, the digest decides."""

    registry: str
    """``host[:port]``, lower case; ``docker.io`` for Docker Hub."""
    repository: str
    tag: str | None
    digest: Digest | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def endpoint(self) -> str:
        """``host[:port]`` that answers for the registry."""
        return DOCKER_HUB_ENDPOINT if self.registry == DOCKER_HUB else self.registry


@dataclass(frozen=True, slots=True)
class LocalName:
    """An image in a folder or archive."""

    transport: Transport
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.transport.value}:{self.path}{tag}{digest}"


ImageName: TypeAlias = Reference | LocalName


def parse_image_name(text: str) -> ImageName:
    """Read any name of an image.

    Raises:
        InvalidReferenceError: the name breaks the grammar.
    """
    if len(text) > NAME_LIMIT:
        raise InvalidReferenceError(f"image name of {len(text)} characters (at most {NAME_LIMIT})")
    scheme, colon, rest = text.partition(":")
    if colon:
        for transport in Transport:
            if scheme == transport.value:
                return _parse_local(transport, rest)
    if text.startswith("docker://"):
        text = text.removeprefix("docker://")
    elif "://" in text:
        raise InvalidReferenceError(
            f"{text[:120]!r}: unknown transport {scheme[:40]!r} "
            "(docker://, oci:, oci-archive: and docker-archive: are known)"
        )
    return parse_reference(text)


def parse_reference(text: str) -> Reference:
    """Read ``[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]``.

    Raises:
        InvalidReferenceError: the name breaks the grammar.
    """
    if len(text) > NAME_LIMIT:
        raise InvalidReferenceError(f"image name of {len(text)} characters (at most {NAME_LIMIT})")
    rest, digest = _split_digest(text)
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head.lower() == "localhost"):
        registry, rest = _parse_host(head, text), tail
    else:
        registry = DOCKER_HUB
    repository, colon, tag = rest.partition(":")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository) or len(repository) > REPOSITORY_LIMIT:
        raise InvalidReferenceError(
            f"{text[:200]!r} is not an image name: repository {repository[:120]!r} "
            "(lower-case letters, digits and single separators are allowed)"
        )
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReferenceError(f"{text[:200]!r} is not an image name: tag {tag[:130]!r}")
    if not colon:
        return Reference(registry, repository, None if digest else DEFAULT_TAG, digest)
    return Reference(registry, repository, tag, digest)


def _split_digest(text: str) -> tuple[str, Digest | None]:
    name, at, digest = text.rpartition("@")
    if not at:
        return text, None
    try:
        return name, Digest.parse(digest)
    except ContentError as error:
        raise InvalidReferenceError(f"{text[:200]!r} is not an image name: {error}") from error


def _parse_host(text: str, whole: str) -> str:
    host = text.lower()
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    if not _HOST.fullmatch(host) or len(host) > 262 or (port and not 0 < int(port) < 65536):
        raise InvalidReferenceError(f"{whole[:200]!r} is not an image name: host {text[:120]!r}")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1 : host.index("]")])
        except ValueError as error:
            raise InvalidReferenceError(f"{whole[:200]!r} is not an image name: {error}") from error
    return DOCKER_HUB if host in DOCKER_HUB_NAMES else host


def _parse_local(transport: Transport, rest: str) -> LocalName:
    """``PATH[:TAG][@DIGEST]``; as in skopeo, the first colon ends the path."""
    digest: Digest | None = None
    _, at, tail = rest.rpartition("@")
    if at and tail.startswith(("sha256:", "sha512:")) and transport is not Transport.DOCKER_ARCHIVE:
        rest, digest = _split_digest(rest)
    path, colon, tag = rest.partition(":")
    whole = f"{transport.value}:{rest}"
    if not path or "\0" in path:
        raise InvalidReferenceError(f"{whole[:200]!r} names no path")
    if colon and not _LAYOUT_TAG.fullmatch(tag):
        raise InvalidReferenceError(f"{whole[:200]!r} is not an image name: tag {tag[:130]!r}")
    return LocalName(transport, path, tag if colon else None, digest)


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` means this machine by its spelling: ``localhost``, 127/8, ::1."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
