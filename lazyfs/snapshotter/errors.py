"""What the snapshotter answers when it cannot do what containerd asks.

The classes are those that containerd's clients tell apart (its ``errdefs``).
"""

from lazyfs.errors import LazyfsError


class SnapshotError(LazyfsError):
    """Base of them."""


class MissingSnapshotError(SnapshotError):
    """There is no such snapshot."""


class SnapshotExistsError(SnapshotError):
    """There is one already; for a layer that was mounted lazily the answer that says so."""


class SnapshotInUseError(SnapshotError):
    """The snapshot has children, or is not in the state that the request needs."""


class InvalidRequestError(SnapshotError):
    """The request means nothing."""
