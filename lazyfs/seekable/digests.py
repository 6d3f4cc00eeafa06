"""Digests whose length says their algorithm: SHA-256 or SHA-512."""

import hashlib

from lazyfs.errors import DigestMismatchError
from lazyfs.seekable.ondisk import SHA256_BYTES, SHA512_BYTES

ALGORITHMS = {SHA256_BYTES: "sha256", SHA512_BYTES: "sha512"}
SIZES = {name: size for size, name in ALGORITHMS.items()}


def algorithm_of(digest: bytes) -> str:
    """The name of the algorithm, as digests in manifests have it."""
    return ALGORITHMS[len(digest)]


def matches(data: bytes | memoryview, digest: bytes) -> bool:
    """Whether ``data`` has that digest."""
    return hashlib.new(algorithm_of(digest), data).digest() == digest


def check(data: bytes | memoryview, digest: bytes, what: str) -> None:
    """Check ``data``, called ``what`` in the message, against its digest.

    Raises:
        DigestMismatchError: it has another one.
    """
    algorithm = algorithm_of(digest)
    found = hashlib.new(algorithm, data).digest()
    if found != digest:
        raise DigestMismatchError.of_digests(
            f"{what} of {len(data)} bytes",
            f"{algorithm}:{digest.hex()}",
            f"{algorithm}:{found.hex()}",
        )
