"""Who wants to know more of a directory than names."""

from collections import OrderedDict

from lazyfs.model import NodeId

MAX_THREADS = 256
"""Threads that are remembered, the ones that listed last."""


class Curious:
    """Tells threads that look at what they list from those that want names.

    The kernel asks for attributes with every listing, whoever wants it. To make inodes of a
    whole directory takes it and us several times as long as the names, which are all that
    ``find`` or a shell's ``*`` wants; to look up name by name takes longer still, if a thread
    wants all of them, as ``ls -l`` does. What it has done with one listing, it does with the next.
    """

    def __init__(self) -> None:
        self._listed: OrderedDict[int, NodeId | None] = OrderedDict()
        """What each thread has listed last; None: it is known to look at what it lists."""

    def lists(self, thread: int, directory: NodeId) -> bool:
        """Whether a thread that lists a directory is likely to want attributes."""
        known = self._listed.pop(thread, directory)
        self._listed[thread] = None if known is None else directory
        if len(self._listed) > MAX_THREADS:
            self._listed.popitem(last=False)
        return known is None

    def looks_up(self, thread: int, directory: NodeId) -> None:
        """A thread wanted to know something of a name in a directory."""
        if self._listed.get(thread) == directory:
            self._listed[thread] = None
