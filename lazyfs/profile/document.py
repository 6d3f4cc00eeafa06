"""A startup profile: which parts of an image a start reads, in order of first use.

It says the same twice. ``blocks`` are blocks of the layers' EROFS images: what a mount fetches
ahead, however the layers are cut into chunks. ``files`` are bytes of files: what a conversion
puts in front, since it changes where everything lies.

As JSON (lines broken here)::

    {"schemaVersion":1,"image":"sha256:...","runs":2,
     "layers":["sha256:...","sha256:..."],
     "blocks":[[layer,first,length],...],
     "files":[[layer,"usr/bin/python3.11",[offset,length]],...]}

A path whose bytes are not UTF-8 has them as lone surrogates, which JSON can escape (PEP 383).
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from lazyfs.errors import ProfileError

PROFILE_MEDIA_TYPE = "application/vnd.lazyfs.profile.v1+json"
PROFILE_ARTIFACT_TYPE = "application/vnd.lazyfs.profile.v1"

BLOCK_BYTES = 4096
"""The unit of ``BlockRun``, whatever the block size of the image."""

MAX_PROFILE_BYTES = 16 << 20
MAX_LAYERS = 1024
MAX_BLOCK_RUNS = 1 << 17
MAX_FILE_RANGES = 1 << 17
MAX_RUNS = 1 << 20
MAX_PATH_BYTES = 4096
MAX_OFFSET = 1 << 60

SCHEMA_VERSION = 1
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-f]{32,256}", re.ASCII)


class BlockRun(NamedTuple):
    """Blocks of 4096 bytes of a layer's (decoded) EROFS image."""

    layer: int
    """Index into the profile's layers."""
    first: int
    length: int

    @property
    def end(self) -> int:
        """The first block behind the run."""
        return self.first + self.length


class FileRange(NamedTuple):
    """Bytes of a regular file."""

    layer: int
    """Index into the profile's layers."""
    path: bytes
    """From the root, without a slash in front."""
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What starts of one image read."""

    image: str
    """Digest of the manifest of the image (of one platform)."""
    layers: tuple[str, ...]
    """Digests of the layers' blobs, bottom first."""
    runs: int
    """How many recordings it was made of."""
    blocks: tuple[BlockRun, ...]
    """In order of first use; no block twice."""
    files: tuple[FileRange, ...]
    """In order of first use; data of regular files only."""

    @property
    def touched_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(run.length for run in self.blocks) * BLOCK_BYTES


def encode_profile(profile: Profile) -> bytes:
    """The document; the same for the same profile.

    Raises:
        ProfileError: it passes a limit, so that nobody could read it.
    """
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "image": profile.image,
        "runs": profile.runs,
        "layers": profile.layers,
        "blocks": profile.blocks,
        "files": [
            (file.layer, file.path.decode("utf-8", "surrogateescape"), (file.offset, file.length))
            for file in profile.files
        ],
    }
    raw = json.dumps(document, separators=(",", ":")).encode()
    decode_profile(raw)
    return raw


def decode_profile(raw: bytes) -> Profile:
    """The profile that a document holds.

    Raises:
        ProfileError: it is none, or passes a limit.
    """
    if len(raw) > MAX_PROFILE_BYTES:
        raise ProfileError(f"a profile of {len(raw)} bytes passes the limit of {MAX_PROFILE_BYTES}")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"a profile that is not JSON: {str(error)[:120]}") from error
    return profile_of(document)


def profile_of(document: object) -> Profile:
    """The profile that a parsed document holds.

    Raises:
        ProfileError: as for ``decode_profile``.
    """
    if not isinstance(document, dict) or document.get("schemaVersion") != SCHEMA_VERSION:
        raise ProfileError(f"not a profile of version {SCHEMA_VERSION}")
    layers = tuple(_digest(value) for value in _items(document, "layers", MAX_LAYERS))
    if not layers:
        raise ProfileError("a profile without layers")
    blocks = tuple(
        _block_run(value, len(layers)) for value in _items(document, "blocks", MAX_BLOCK_RUNS)
    )
    _refuse_overlap((run.layer, run.first, run.end) for run in blocks)
    return Profile(
        image=_digest(document.get("image")),
        layers=layers,
        runs=_number(document.get("runs"), 1, MAX_RUNS, "runs"),
        blocks=blocks,
        files=tuple(
            _file_range(value, len(layers)) for value in _items(document, "files", MAX_FILE_RANGES)
        ),
    )


def _items(document: dict[str, object], key: str, limit: int) -> list[object]:
    value = document.get(key)
    if not isinstance(value, list) or len(value) > limit:
        raise ProfileError(f"{key} of a profile is not a list of at most {limit}")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or len(value) > 300 or not _DIGEST.fullmatch(value):
        raise ProfileError(f"{str(value)[:80]!r} in a profile is not a digest")
    return value


def _number(value: object, least: int, most: int, what: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ProfileError(f"{what} of a profile is not a number of {least} to {most}")
    return value


def _is_list(value: object, length: int) -> TypeGuard[list[object]]:
    return isinstance(value, list) and len(value) == length


def _block_run(value: object, layers: int) -> BlockRun:
    if not _is_list(value, 3):
        raise ProfileError("blocks of a profile are not lists of layer, first and length")
    layer, first, length = value
    most = MAX_OFFSET // BLOCK_BYTES
    return BlockRun(
        _number(layer, 0, layers - 1, "layer"),
        _number(first, 0, most, "first block"),
        _number(length, 1, most, "length in blocks"),
    )


def _file_range(value: object, layers: int) -> FileRange:
    if not _is_list(value, 3) or not _is_list(value[2], 2):
        raise ProfileError("files of a profile are not lists of layer, path and range")
    layer, path, (offset, length) = value[0], value[1], value[2]
    return FileRange(
        _number(layer, 0, layers - 1, "layer"),
        _path(path),
        _number(offset, 0, MAX_OFFSET, "offset"),
        _number(length, 1, MAX_OFFSET, "length"),
    )


def _path(value: object) -> bytes:
    try:
        path = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        path = b""
    names = path.split(b"/")
    if not 0 < len(path) <= MAX_PATH_BYTES or b"\0" in path or {b"", b".", b".."} & {*names}:
        raise ProfileError(f"{str(value)[:80]!r} in a profile is not a path from the root")
    return path


def _refuse_overlap(spans: Iterable[tuple[int, int, int]]) -> None:
    last = (-1, 0, 0)
    for span in sorted(spans):
        if span[0] == last[0] and span[1] < last[2]:
            raise ProfileError(f"block {span[1]} of layer {span[0]} is in a profile twice")
        last = span
