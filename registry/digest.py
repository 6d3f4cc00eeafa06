"""Content digests: ``algorithm:encoded`` (image-spec, descriptor.md, section "Digests")."""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from registry.errors import ContentError

Algorithm = Literal["sha256", "sha512"]

_GRAMMAR = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Digest:
    """A registered algorithm and the lower-case hexadecimal digest; always well formed."""

    algorithm: Algorithm
    encoded: str

    def __post_init__(self) -> None:
        if not _GRAMMAR.fullmatch(f"{self.algorithm}:{self.encoded}"):
            raise ContentError(f"not a digest: {str(self)[:160]!r} (sha256 or sha512 expected)")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"

    @property
    def raw(self) -> bytes:
        """The digest as bytes."""
        return bytes.fromhex(self.encoded)

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read ``sha256:…`` or ``sha512:…``.

        Raises:
            ContentError: anything else.
        """
        algorithm, _, encoded = text.partition(":")
        return cls(algorithm, encoded)  # type: ignore[arg-type]  # checked by __post_init__

    @classmethod
    def of(cls, data: bytes, algorithm: Algorithm = "sha256") -> "Digest":
        """The digest of ``data``."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())


class DigestVerifier:
    """Checks a stream of pieces against a digest and a size: the size first, then the hash.

    Too many bytes are refused as soon as they come, so a lying sender cannot make the reader
    take more than was promised.
    """

    def __init__(self, digest: Digest, size_bytes: int, what: str) -> None:
        """``what`` names the content in messages."""
        self._digest = digest
        self._missing_bytes = size_bytes
        self._size_bytes = size_bytes
        self._what = what
        self._hash = hashlib.new(digest.algorithm)

    def update(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            ContentError: more bytes than were promised.
        """
        self._missing_bytes -= len(piece)
        if self._missing_bytes < 0:
            raise ContentError(f"{self._what}: longer than the promised {self._size_bytes} bytes")
        self._hash.update(piece)

    def finish(self) -> None:
        """Say that the content is complete.

        Raises:
            ContentError: fewer bytes than were promised, or another digest.
        """
        if self._missing_bytes:
            have = self._size_bytes - self._missing_bytes
            raise ContentError(f"{self._what}: {have} bytes, wanted {self._size_bytes}")
        found = self._hash.hexdigest()
        if found != self._digest.encoded:
            raise ContentError(
                f"{self._what}: wanted {self._digest}, found {self._digest.algorithm}:{found}"
            )


def verify(data: bytes, digest: Digest, size_bytes: int, what: str) -> None:
    """Check whole content.

    Raises:
        ContentError: another size or digest.
    """
    verifier = DigestVerifier(digest, size_bytes, what)
    verifier.update(data)
    verifier.finish()
