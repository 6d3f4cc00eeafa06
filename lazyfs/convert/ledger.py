"""What became of layers that were converted before, so that it need not be done again.

One small file per conversion, named by a digest of all that the result depends on. The bytes
are not kept: an entry helps only while the destination has the blob, which is asked every time. The
folder belongs to the user and is believed, as a build tool believes its cache; what is in it
is never executed, and a broken or foreign entry is passed over. Nobody waits for anybody: files
are written aside and renamed, and the last one wins.
"""

import base64
import hashlib
import json
import logging
import tempfile
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import zstandard

from lazyfs import __version__
from lazyfs.convert.hot import FrontLayout
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.results import WrappedImage
from lazyfs.convert.sourcelayers import SourceLayer
from lazyfs.erofs.build.lower import LowerNames
from lazyfs.erofs.build.order import BlockSpan
from lazyfs.erofs.build.tree import Attributes
from lazyfs.erofs.build.xattrs import Xattr
from registry.digest import Digest
from registry.errors import RegistryError

FORMAT = 2
"""Of the entries; changes with anything that would make an old entry wrong."""

UNFINISHED = ".new-"
MAX_ENTRIES = 20_000
"""The oldest files beyond this many are removed."""

STALE_S = 3600
"""A file that is still being written after so long was left by a process that was killed."""

MAX_ENTRY_BYTES = 16 << 20
MAX_NAMES_BYTES = 256 << 20

log = logging.getLogger(__name__)


class Ledger:
    """The conversions of one user, in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which need not exist."""
        self._folder = folder

    def find(self, layer: SourceLayer, options: ConvertOptions) -> WrappedImage | None:
        """What the same conversion gave before, if that is known."""
        for chain in (None, layer.chain):
            document = self._read(_key(layer, options, chain), MAX_ENTRY_BYTES)
            if document is not None:
                with suppress(KeyError, TypeError, ValueError, RegistryError):
                    return _as_result(document["result"])
        return None

    def keep(
        self,
        layer: SourceLayer,
        options: ConvertOptions,
        result: WrappedImage,
        *,
        depends_below: bool,
    ) -> None:
        """Remember a result; without a usable folder nothing is remembered."""
        key = _key(layer, options, layer.chain if depends_below else None)
        values = {
            "digest": str(result.digest),
            "size_bytes": result.size_bytes,
            "diff_id": str(result.diff_id),
            "image_size_bytes": result.image_size_bytes,
            "chunks": result.chunks,
            "annotations": dict(result.annotations),
            "front": None if result.front is None else _front_document(result.front),
        }
        self._write(key, {"result": values})

    def names(self, layer: SourceLayer) -> LowerNames | None:
        """What the layer says to layers above it, if that is known."""
        document = self._read(_names_key(layer), MAX_NAMES_BYTES)
        if document is None:
            return None
        with suppress(KeyError, TypeError, ValueError):
            return _as_names(document)
        return None

    def keep_names(self, layer: SourceLayer, names: LowerNames) -> None:
        """Remember what the layer says to layers above it."""
        self._write(_names_key(layer), _names_document(names))

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / name

    def _read(self, key: Mapping[str, Any], limit_bytes: int) -> dict[str, Any] | None:
        try:
            packed = self._path(key).read_bytes()
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(packed, limit_bytes)
            if not unpacker.eof:
                raise ValueError(f"{len(packed)} bytes that are too short or hold too much")
            document = json.loads(raw)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, zlib.error) as error:
            log.debug("conversion cache: %s", error)
            return None
        if not isinstance(document, dict) or document.get("key") != key:
            return None
        return document

    def _write(self, key: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        raw = json.dumps({"key": key, **document}).encode()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self._folder, prefix=UNFINISHED, delete=False
            ) as file:
                try:
                    file.write(zlib.compress(raw, 1))
                    file.close()
                    Path(file.name).replace(self._path(key))
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            self._tidy()
        except OSError as error:
            log.debug("conversion cache: %s", error)

    def _tidy(self) -> None:
        for path in self._folder.glob(f"{UNFINISHED}*"):
            if path.stat().st_mtime < time.time() - STALE_S:
                path.unlink(missing_ok=True)
        paths = list(self._folder.iterdir())
        if len(paths) <= MAX_ENTRIES:
            return
        paths.sort(key=lambda path: path.stat().st_mtime)
        for path in paths[: len(paths) - MAX_ENTRIES]:
            path.unlink(missing_ok=True)


def _key(layer: SourceLayer, options: ConvertOptions, chain: str | None) -> dict[str, Any]:
    """All that the blob of a converted layer depends on; ``chain`` None: not on layers below."""
    return {
        "format": FORMAT,
        "lazyfs": __version__,
        "zstd": list(zstandard.ZSTD_VERSION),
        "source": str(layer.descriptor.digest),
        "diff_id": str(layer.diff_id),
        "kind": layer.kind.name,
        "image_bytes": layer.image_bytes(),
        "lowest": layer.lowest,
        "below": chain,
        "layout": options.layout.value,
        "chunk_size": options.chunk_size_bytes,
        "file_aligned": options.file_aligned,
        "level": options.level,
        "verity": options.verity_block_size_bytes if options.verity else None,
        "hot": layer.hot.digest if layer.hot is not None else None,
    }


def _names_key(layer: SourceLayer) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "lazyfs": __version__,
        "names of": str(layer.descriptor.digest),
        "diff_id": str(layer.diff_id),
        "lowest": layer.lowest,
    }


def _as_result(values: Mapping[str, Any]) -> WrappedImage:
    annotations = values["annotations"]
    if not all(isinstance(text, str) for pair in annotations.items() for text in pair):
        raise TypeError("annotations are not texts")
    numbers = [values[name] for name in ("size_bytes", "image_size_bytes", "chunks")]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise TypeError("sizes are not numbers")
    return WrappedImage(
        digest=Digest.parse(values["digest"]),
        size_bytes=values["size_bytes"],
        annotations=annotations,
        diff_id=Digest.parse(values["diff_id"]),
        image_size_bytes=values["image_size_bytes"],
        chunks=values["chunks"],
        front=None if values["front"] is None else _as_front(values["front"]),
    )


def _front_document(front: FrontLayout) -> dict[str, Any]:
    return {
        "metadata": front.metadata,
        "data": front.data,
        "missing": [_text(path) for path in sorted(front.missing)],
    }


def _as_front(values: Mapping[str, Any]) -> FrontLayout:
    metadata = tuple(BlockSpan(int(first), int(length)) for first, length in values["metadata"])
    first, length = values["data"]
    missing = frozenset(map(base64.b64decode, values["missing"]))
    return FrontLayout(metadata, BlockSpan(int(first), int(length)), missing)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _names_document(names: LowerNames) -> dict[str, Any]:
    return {
        "directories": [
            [
                _text(path),
                None
                if attributes is None
                else [
                    *attributes[:4],
                    [[x[0], _text(x[1]), _text(x[2])] for x in attributes.xattrs],
                ],
            ]
            for path, attributes in names.directories.items()
        ],
        "symlinks": [[_text(path), _text(target)] for path, target in names.symlinks.items()],
        "hidden": [_text(path) for path in sorted(names.hidden)],
        "opaque": [_text(path) for path in sorted(names.opaque)],
    }


def _as_names(document: Mapping[str, Any]) -> LowerNames:
    data = base64.b64decode
    directories: dict[bytes, Attributes | None] = {}
    for path, values in document["directories"]:
        if values is None:
            directories[data(path)] = None
            continue
        mode, uid, gid, mtime_ns, xattrs = values
        found = tuple(Xattr(int(index), data(name), data(value)) for index, name, value in xattrs)
        attributes = Attributes(int(mode), int(uid), int(gid), int(mtime_ns), found)
        directories[data(path)] = attributes
    return LowerNames(
        directories,
        {data(path): data(target) for path, target in document["symlinks"]},
        frozenset(map(data, document["hidden"])),
        frozenset(map(data, document["opaque"])),
    )
