"""The errors of the chunk store."""


class CacheError(Exception):
    """Base of the cache's errors: the local disk failed; read on without the cache."""
