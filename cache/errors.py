"""The errors of the chunk store.

    CacheError                   never raised itself
    ├── InvalidChunkKeyError     not a key: nothing was looked up or stored
    ├── CacheOpenError           the folder cannot serve as a store
    └── CacheWriteError          a chunk could not be stored or removed; read on without it
        ├── ChunkTooLargeError   larger than the whole store may be
        └── StoreFullError       nothing more can be evicted now

A failed read is no error: the store then answers "not here" and counts it.
"""


class CacheError(Exception):
    """Base of the cache's errors: the local disk failed; read on without the cache."""


class InvalidChunkKeyError(CacheError, ValueError):
    """The parts of a key are not what may name a file."""


class CacheOpenError(CacheError):
    """The folder cannot serve as a store: not ours, not safe, another format, disk failed."""


class CacheWriteError(CacheError):
    """A chunk could not be stored or removed."""


class ChunkTooLargeError(CacheWriteError):
    """The chunk alone passes the store's byte limit."""


class StoreFullError(CacheWriteError):
    """The byte limit is reached, and all that is stored is in use or being written."""
