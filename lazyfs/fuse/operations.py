"""FUSE requests answered from an ``ImageTree``.

Nothing is kept per open file or looked-up name: a node's number says all. So OPEN and OPENDIR are
answered with ``ENOSYS``, once, and the kernel opens by itself from there on.
"""

import errno
import logging
from collections.abc import Mapping

import trio

from lazyfs.errors import (
    DeadlineExceededError,
    LazyfsError,
    NoSuchEntryError,
    NotYetThereError,
    SourceUnavailableError,
)
from lazyfs.failurelog import FailureLog
from lazyfs.fuse import replies
from lazyfs.fuse.counters import Counters
from lazyfs.fuse.errno_table import ORDINARY_ANSWERS, ErrnoError, errno_of
from lazyfs.fuse.lateness import Lateness, LateRead
from lazyfs.fuse.listings import LISTING_SHARE, Listings
from lazyfs.fuse.protocol import Opcode
from lazyfs.fuse.requests import (
    decode_getxattr,
    decode_listxattr,
    decode_name,
    decode_read,
    decode_thread,
)
from lazyfs.fuse.server import Answer, Handler
from lazyfs.interfaces import ImageTree
from lazyfs.model import ByteRange, NodeId

DEADLINE_SLACK_S = 2.0
"""The tree ends its own waits in time and knows better what to say; this is the back stop."""

log = logging.getLogger(__name__)


class ImageOperations:
    """Serves one tree, read-only."""

    def __init__(
        self,
        tree: ImageTree,
        timeout_s: float,
        size_bytes: int,
        timeout_errno: int = errno.EIO,
    ) -> None:
        """Serve ``tree``.

        Args:
            tree: what to serve.
            timeout_s: how long a request may wait; 0: for ever.
            size_bytes: what ``statfs`` gives as the size of the file system.
            timeout_errno: what a request gets that has waited in vain.
        """
        self.counters = Counters()
        self.deadline_s = timeout_s + DEADLINE_SLACK_S if timeout_s else float("inf")
        listings = Listings(tree, self.deadline_s * LISTING_SHARE)
        self.prepare = listings.prepare
        self.handlers: Mapping[int, Handler] = {
            Opcode.LOOKUP: self._on_lookup,
            Opcode.GETATTR: self._on_getattr,
            Opcode.READLINK: self._on_readlink,
            Opcode.READ: self._on_read,
            Opcode.STATFS: self._on_statfs,
            Opcode.GETXATTR: self._on_getxattr,
            Opcode.LISTXATTR: self._on_listxattr,
            Opcode.READDIR: listings.names,
            Opcode.READDIRPLUS: listings.with_attributes,
        }
        if tree.grows:  # its listings are not to be remembered
            self.handlers |= {Opcode.OPENDIR: _opened, Opcode.RELEASEDIR: _released}
        self._listings = listings
        self._tree = tree
        self._size_bytes = size_bytes
        self._timeout_s = timeout_s
        self._timeout_errno = timeout_errno
        self._failures = FailureLog()
        self._lateness = Lateness()

    def errno_for(self, operation: str, node: NodeId, error: Exception, began_s: float) -> int:
        """What a reader gets for ``error``; it is logged and counted, unless it is ordinary."""
        error = self._or_late(error, began_s)
        number = errno_of(error)
        if isinstance(error, DeadlineExceededError):
            number = self._timeout_errno
        if isinstance(error, ORDINARY_ANSWERS):
            return number
        name = errno.errorcode.get(number, str(number))
        self.counters.failures[name] += 1
        what = f"{type(error).__name__}: {error}"
        swallowed = self._failures.admit(f"{operation} {what}", trio.current_time())
        if swallowed is not None:
            more = f" ({swallowed} more like it since)" if swallowed else ""
            bug = None if isinstance(error, LazyfsError | OSError) else error
            message = "%s of node %d failed with %s: %s%s"
            fields = {"event": "request_failed", "operation": operation, "errno": name}
            log.error(message, operation, node, name, what, more, exc_info=bug, extra=fields)
        return number

    def _or_late(self, failure: Exception, began_s: float) -> Exception:
        """The failure of a request; that its time is over, if it is, whatever ended it."""
        if isinstance(failure, SourceUnavailableError) and self._is_late(began_s):
            return DeadlineExceededError(str(failure))
        return failure

    def _is_late(self, began_s: float) -> bool:
        return 0 < self._timeout_s <= trio.current_time() - began_s

    async def _on_lookup(self, parent: NodeId, request: bytes) -> Answer:
        """Find a name; that it is not there is also an answer to keep.

        "." and ".." come from who has nothing but a file handle.
        """
        name = decode_name(request)
        if len(name) > replies.NAME_MAX:  # the kernel's limit for FUSE is higher
            raise ErrnoError(errno.ENAMETOOLONG)
        tree = self._tree
        try:
            if name == b".":
                node = parent
            elif name == b"..":
                node = await tree.parent(parent)
            else:
                node = await tree.lookup(parent, name)
        except NotYetThereError:
            raise  # ENOENT, which the kernel does not remember
        except NoSuchEntryError:
            return replies.ABSENT_ENTRY
        self._listings.curious.looks_up(decode_thread(request), parent)
        return replies.encode_entry(node, await tree.attributes(node))

    async def _on_getattr(self, node: NodeId, _: bytes) -> Answer:
        return replies.encode_attributes(node, await self._tree.attributes(node))

    async def _on_readlink(self, node: NodeId, _: bytes) -> Answer:
        return await self._tree.link_target(node)

    async def _on_read(self, node: NodeId, request: bytes) -> Answer:
        """Give file data; short only at the end of the file."""
        where = ByteRange(*decode_read(request))
        began_s = trio.current_time()
        if (late := self._lateness.error(node, where, began_s)) is not None:
            raise type(late)(*late.args)  # anew: a traceback grows with each raise
        counters = self.counters
        try:
            data = await self._tree.read(node, *where)
        except (LazyfsError, trio.Cancelled) as error:
            now_s = trio.current_time()
            counters.read_s.observe(now_s - began_s)
            if isinstance(error, LazyfsError):
                failure = self._or_late(error, began_s)
                self._lateness.note(LateRead(node, where, failure), now_s - began_s, now_s)
            elif self._is_late(began_s):  # and not killed
                failure = DeadlineExceededError("no answer a moment ago")
                self._lateness.note(LateRead(node, where, failure), now_s - began_s, now_s)
            raise
        counters.read_bytes += len(data)
        counters.read_s.observe(trio.current_time() - began_s)
        return data

    async def _on_statfs(self, _node: NodeId, _request: bytes) -> Answer:
        return replies.encode_statfs(self._size_bytes)

    async def _on_getxattr(self, node: NodeId, request: bytes) -> Answer:
        size, name = decode_getxattr(request)
        xattrs = await self._tree.xattrs(node)
        if name not in xattrs:
            raise ErrnoError(errno.ENODATA)
        return _sized(xattrs[name], size)

    async def _on_listxattr(self, node: NodeId, request: bytes) -> Answer:
        size, _ = decode_listxattr(request)
        names = await self._tree.xattrs(node)
        return _sized(b"".join([name + b"\0" for name in names]), size)


async def _opened(_node: NodeId, _request: bytes) -> Answer:
    return replies.OPEN_OUT


async def _released(_node: NodeId, _request: bytes) -> Answer:
    return b""


def _sized(value: bytes, size: int) -> Answer:
    """A value, if there is room for it, or its length.

    Raises:
        ErrnoError: there is none.
    """
    if size == 0:
        return replies.encode_length(len(value))
    if len(value) > size:
        raise ErrnoError(errno.ERANGE)
    return value
