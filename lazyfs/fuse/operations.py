"""FUSE requests answered from an ``ImageTree``.

An exception other than ``FUSEError`` that leaves a handler ends the mount, and a reader
whose request is never answered cannot be killed. So every handler runs inside ``_answered``,
which has a deadline and lets nothing but ``FUSEError`` out.

Nothing is kept per open file or looked-up name: a file handle is the node's id, and
"forget" needs no answer.
"""

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from lazyfs.errors import (
    DeadlineExceededError,
    ImageFormatError,
    LazyfsError,
    NoSuchEntryError,
    NotYetThereError,
    SourceUnavailableError,
)
from lazyfs.failurelog import FailureLog
from lazyfs.fuse.adoption import Adoptable
from lazyfs.fuse.askers import Askers
from lazyfs.fuse.attributes import absent_entry, bare_entry, entry_attributes
from lazyfs.fuse.counters import Counters
from lazyfs.fuse.errno_table import ORDINARY_ANSWERS, errno_of, first_cause
from lazyfs.fuse.lateness import Lateness, LateRead
from lazyfs.interfaces import ImageTree
from lazyfs.model import ByteRange, DirectoryEntry, NodeId

DEADLINE_SLACK_S = 2.0
"""The tree ends its own waits in time and knows better what to say; this is the back stop."""

LISTING_SHARE = 0.5
"""Part of its deadline that a listing may go on for once it has something to hand out."""

BLOCK_SIZE_BYTES = 4096
NAME_MAX = 255

POSITION_AFTER_DOT = 1
POSITION_AFTER_DOTDOT = 2
"""Positions of a listing: 0, these two for "." and "..", then the tree's own plus 2."""

UNKNOWN_INODE = 0xFFFF_FFFF
"""For "..", whose number only the kernel knows (``FUSE_UNKNOWN_INO`` in libfuse)."""

log = logging.getLogger(__name__)

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
_Handler = Callable[
    Concatenate["ImageOperations", int, _Arguments], Coroutine[object, object, _Answer]
]


def _answered(method: _Handler[_Arguments, _Answer]) -> _Handler[_Arguments, _Answer]:
    """Give a handler its deadline, its counter and its last line of defence."""
    operation = method.__name__

    @functools.wraps(method)
    async def handler(
        self: "ImageOperations",
        node: int,
        /,
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Answer:
        began_s = trio.current_time()
        gone = False
        counters = self.counters
        counters.operations[operation] += 1
        counters.last = request = counters.last + 1
        counters.began[request] = began_s
        try:
            with trio.move_on_after(self.deadline_s) as scope:
                if args and isinstance(asker := args[-1], pyfuse3.RequestContext):
                    self.askers.begin(scope, asker.pid)
                try:
                    return await method(self, node, *args, **kwargs)
                finally:
                    gone = self.askers.end(scope)
            failure: Exception = DeadlineExceededError(f"no answer within {self.deadline_s:g} s")
        except pyfuse3.FUSEError:
            raise
        except Exception as error:  # noqa: BLE001 - one that got out would end the mount
            failure = first_cause(error)
        finally:
            del counters.began[request]
        if gone:
            raise pyfuse3.FUSEError(errno.EINTR)  # to nobody: the process is being killed
        raise self.answer_to(operation, NodeId(node), self._or_late(failure, began_s)) from failure

    return handler


class ImageOperations(Adoptable):
    """Serves one tree, read-only."""

    supports_dot_lookup = True
    """A node's number says all, so the kernel may come with a file handle from long ago."""
    enable_writeback_cache = False
    enable_acl = True  # the kernel then obeys the image's ACLs, as with its own file systems

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
        super().__init__()
        self.counters = Counters()
        self.askers = Askers()
        self.deadline_s = timeout_s + DEADLINE_SLACK_S if timeout_s else float("inf")
        self.usable = trio.Event()
        """Set when the kernel and we have agreed on the protocol."""
        self._tree = tree
        self._size_bytes = size_bytes
        self._timeout_s = timeout_s
        self._timeout_errno = timeout_errno
        self._failures = FailureLog()
        self._lateness = Lateness()

    def _or_late(self, failure: Exception, began_s: float) -> Exception:
        """The failure of a request; that its time is over, if it is, whatever ended it."""
        late = 0 < self._timeout_s <= trio.current_time() - began_s
        if late and isinstance(failure, SourceUnavailableError):
            return DeadlineExceededError(str(failure))
        return failure

    def init(self) -> None:
        """Called once, before the first request."""
        super().init()
        self.usable.set()

    def answer_to(self, operation: str, node: NodeId, error: Exception) -> pyfuse3.FUSEError:
        """What a reader gets for ``error``; it is logged and counted, unless it is ordinary."""
        if isinstance(error, pyfuse3.FUSEError):
            return error
        number = errno_of(error)
        if isinstance(error, DeadlineExceededError):
            number = self._timeout_errno
        if isinstance(error, ORDINARY_ANSWERS):
            return pyfuse3.FUSEError(number)
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
        return pyfuse3.FUSEError(number)

    @_answered
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name; that it is not there is also an answer to keep."""
        if len(name) > NAME_MAX:  # the kernel's limit for FUSE is higher
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        try:
            node = await self._lookup(NodeId(parent_inode), name)
        except NotYetThereError:
            raise  # ENOENT, which the kernel does not remember
        except NoSuchEntryError:
            return absent_entry()
        return entry_attributes(node, await self._tree.attributes(node))

    async def _lookup(self, parent: NodeId, name: bytes) -> NodeId:
        """A name in a directory; "." and ".." come from who has nothing but a file handle."""
        if name == b".":
            return parent
        if name == b"..":
            return await self._tree.parent(parent)
        return await self._tree.lookup(parent, name)

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Give the attributes of a node."""
        node = NodeId(inode)
        return entry_attributes(node, await self._tree.attributes(node))

    @_answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Give the target of a symbolic link."""
        return bytes(await self._tree.link_target(NodeId(inode)))

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open for reading; pages that the kernel has stay good."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Give file data; short only at the end of the file."""
        node, where = NodeId(fh), ByteRange(off, size)
        began_s = trio.current_time()
        if (late := self._lateness.error(node, where, began_s)) is not None:
            raise type(late)(*late.args)  # anew: a traceback grows with each raise
        try:
            data = await self._tree.read(node, off, size)
        except (LazyfsError, trio.Cancelled) as error:
            now_s = trio.current_time()
            failure: Exception
            if isinstance(error, trio.Cancelled):
                failure = DeadlineExceededError("no answer a moment ago")
            else:
                failure = self._or_late(error, began_s)
            self._lateness.note(LateRead(node, where, failure), now_s - began_s, now_s)
            self.counters.read_s.observe(now_s - began_s)
            raise
        counters = self.counters
        counters.read_bytes += len(data)
        counters.read_s.observe(trio.current_time() - began_s)
        return data

    @_answered
    async def flush(self, fh: int) -> None:
        """Nothing to flush: after the first ENOSYS the kernel asks no more."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @_answered
    async def release(self, fh: int) -> None:
        """Nothing is kept for an open file."""

    @_answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open for listing."""
        return inode

    @_answered
    async def releasedir(self, fh: int) -> None:
        """Nothing is kept for an open directory."""

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Fill the kernel's buffer with names and attributes from a position on."""
        directory = NodeId(fh)
        position = start_id
        if position < POSITION_AFTER_DOT:
            dot = bare_entry(directory, stat.S_IFDIR)
            if not pyfuse3.readdir_reply(token, b".", dot, POSITION_AFTER_DOT):
                return
            position = POSITION_AFTER_DOT
        if position < POSITION_AFTER_DOTDOT:
            dotdot = bare_entry(NodeId(UNKNOWN_INODE), stat.S_IFDIR)
            if not pyfuse3.readdir_reply(token, b"..", dotdot, POSITION_AFTER_DOTDOT):
                return
            position = POSITION_AFTER_DOTDOT
        await self._list(directory, position - POSITION_AFTER_DOTDOT, token)

    async def _list(self, directory: NodeId, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Put entries from the tree's position ``start`` into the kernel's buffer.

        Once an entry is in, neither an error nor lack of time loses it: the listing stops
        there, and the next request meets the trouble as its first entry.
        """
        listed = False
        with trio.CancelScope() as patience:
            try:
                while entries := await self._tree.entries(directory, start):
                    for entry in entries:
                        shown = await self._listed_attributes(entry)
                        start = entry.next_position
                        position = start + POSITION_AFTER_DOTDOT
                        if not pyfuse3.readdir_reply(token, bytes(entry.name), shown, position):
                            return
                        if not listed:
                            listed = True
                            patience.deadline = (
                                trio.current_time() + self.deadline_s * LISTING_SHARE
                            )
            except Exception:
                if not listed:
                    raise

    async def _listed_attributes(self, entry: DirectoryEntry) -> pyfuse3.EntryAttributes:
        """What a listing tells the kernel about an entry; a broken inode costs only itself.

        Only an error of the image itself gives a stand-in. After any other the kernel may
        know the inode already, and a stand-in would empty a file that is in use.

        The kernel is to look up a directory before it goes in: only a lookup sees that a
        broken image has it in several places.
        """
        try:
            attributes = await self._tree.attributes(entry.node)
            shown = entry_attributes(entry.node, attributes)
        except Exception as error:
            if isinstance(first_cause(error), ImageFormatError | OverflowError):
                return bare_entry(entry.node, entry.file_type)
            raise
        if stat.S_ISDIR(attributes.mode) or stat.S_IFMT(attributes.mode) != entry.file_type:
            shown.entry_timeout = 0
        return shown

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Give one extended attribute."""
        xattrs = await self._tree.xattrs(NodeId(inode))
        if name not in xattrs:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return bytes(xattrs[name])

    @_answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        """Give the names of the extended attributes."""
        return [bytes(name) for name in await self._tree.xattrs(NodeId(inode))]

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Give the size of the file system, which is full."""
        self.counters.operations["statfs"] += 1
        figures = pyfuse3.StatvfsData()
        figures.f_bsize = BLOCK_SIZE_BYTES
        figures.f_frsize = BLOCK_SIZE_BYTES
        figures.f_blocks = -(-self._size_bytes // BLOCK_SIZE_BYTES)
        figures.f_namemax = NAME_MAX
        return figures

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept for a name that the kernel knows."""
