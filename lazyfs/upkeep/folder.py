"""A cache folder as a whole: chunks, documents, and what else lies in it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from cache.chunkfiles import ChunkFiles
from cache.directory import DirectoryStore
from cache.documents import DocumentFolder
from cache.errors import CacheOpenError
from cache.folder import LOCKS_NAME, TEMPORARY_NAME
from lazyfs.documents import FOLDER_NAME
from lazyfs.store.index import FOLDER_NAME as STORES_NAME

CONVERSIONS_NAME = "conversions"
"""Where ``lazyfs convert`` remembers what it has converted."""


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """An open cache folder; what killed processes left in it is gone."""

    path: Path
    files: ChunkFiles
    store: DirectoryStore
    """On the same ``files``."""
    documents: DocumentFolder
    stores: DocumentFolder
    """The manifests of stores (``lazyfs store``): never removed here."""
    swept: int
    """How many files of killed processes were removed on opening."""


@asynccontextmanager
async def open_cache(path: Path) -> AsyncIterator[CacheFolder]:
    """Open the cache folder ``path``, which is there.

    Raises:
        CacheOpenError: there is none, it is not ours, or of another format.
    """
    path = Path(await trio.Path(path).absolute())
    if not await trio.Path(path).is_dir():
        raise CacheOpenError(f"{path}: there is no cache")
    left = _leftovers(path)
    files = await trio.to_thread.run_sync(ChunkFiles.open, path, None)
    with (
        DirectoryStore(files) as store,
        DocumentFolder.open(path, FOLDER_NAME) as documents,
        DocumentFolder.open(path, STORES_NAME) as stores,
    ):
        yield CacheFolder(path, files, store, documents, stores, len(left - _leftovers(path)))


def files_in(folder: Path) -> Iterator[tuple[Path, int]]:
    """The regular files below ``folder`` with their sizes in bytes; none if it is not there."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                found = path.lstat()
            except OSError:  # gone meanwhile
                continue
            yield path, found.st_size


def _leftovers(path: Path) -> set[Path]:
    """What is being written or fetched now, or was by a process that is dead."""
    names = (TEMPORARY_NAME, LOCKS_NAME)
    return {file for name in names for file, _ in files_in(path / name)}
