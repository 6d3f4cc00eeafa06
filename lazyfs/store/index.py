"""Which images a store has, kept on disk, so that it is the same after a restart.

A note of an image has all that finding its layers needs: its name (where its blobs are), what it
meant (its manifest, by digest) and the diff IDs that its layers go by. It lies with the manifests
themselves in a folder of the cache that is never trimmed: a store must not lose what containerd's
snapshots refer to.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cache.documents import DocumentFolder
from lazyfs.errors import PlanError

FOLDER_NAME = "stores"
"""In the cache folder."""

MAX_IMAGES = 10_000


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of a store."""

    name: str
    pin: str
    """For ``lazyfs.resolve.resolve_pinned``."""
    diff_ids: tuple[str, ...]
    """What each layer of the manifest goes by, bottom layer first."""


def encode(images: Sequence[StoredImage]) -> bytes:
    """The document."""
    return json.dumps({"version": 1, "images": [asdict(image) for image in images]}).encode()


def decode(document: bytes | None) -> tuple[StoredImage, ...]:
    """The images of a document; none if there is no document.

    Raises:
        PlanError: another program wrote it.
    """
    if document is None:
        return ()
    try:
        values = json.loads(document)
        if values["version"] != 1 or len(values["images"]) > MAX_IMAGES:
            raise PlanError("the list of a store's images is of another version, or too long")
        return tuple(
            StoredImage(str(image["name"]), str(image["pin"]), tuple(map(str, image["diff_ids"])))
            for image in values["images"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"the list of a store's images cannot be read: {error!r}") from error


class StoreIndex:
    """The images of the store on one directory; blocking."""

    def __init__(self, documents: DocumentFolder, lock: Path, directory: str) -> None:
        """Keep the list in ``documents``; who changes it locks the folder ``lock``."""
        self._documents = documents
        self._lock = lock
        self._name = "store-" + hashlib.sha256(os.fsencode(directory)).hexdigest()

    def read(self) -> bytes | None:
        """The document of this moment, for ``decode``."""
        return self._documents.read(self._name)

    def add(self, new: Sequence[StoredImage]) -> None:
        """Add images; one of the same name and content is there already.

        Raises:
            PlanError: another program wrote what is there, or there are too many.
            CacheWriteError, OSError: the list cannot be written.
        """
        self._change(lambda images: tuple(dict.fromkeys((*images, *new))))

    def remove(self, name: str) -> bool:
        """Remove all images of a name; whether there were any.

        Raises:
            As for ``add``.
        """
        before = decode(self.read())
        self._change(lambda images: tuple(image for image in images if image.name != name))
        return any(image.name == name for image in before)

    def _change(self, change: Callable[[tuple[StoredImage, ...]], tuple[StoredImage, ...]]) -> None:
        folder = os.open(self._lock, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            images = change(decode(self.read()))
            if len(images) > MAX_IMAGES:
                raise PlanError(f"a store has at most {MAX_IMAGES} images")
            self._documents.write(self._name, encode(images))
        finally:
            os.close(folder)
