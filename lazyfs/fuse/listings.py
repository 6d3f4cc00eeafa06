"""Directories, listed for READDIR and READDIRPLUS."""

import logging
import stat
from collections.abc import Sequence
from contextlib import suppress

import trio

from lazyfs.errors import ImageFormatError
from lazyfs.fuse import replies
from lazyfs.fuse.ahead import Ahead, Wanted
from lazyfs.fuse.curious import Curious
from lazyfs.fuse.errno_table import first_cause
from lazyfs.fuse.requests import decode_read, decode_thread
from lazyfs.fuse.server import Answer
from lazyfs.interfaces import ImageTree
from lazyfs.model import END_POSITION, DirectoryEntry, NodeId

LISTING_SHARE = 0.5
"""Part of its deadline that a listing may go on for once it has something to hand out."""

POSITION_AFTER_DOT = 1
POSITION_AFTER_DOTDOT = 2
"""Positions of a listing: 0, these two for "." and "..", then the tree's own plus 2."""

END = END_POSITION + POSITION_AFTER_DOTDOT

UNKNOWN_INODE = 0xFFFF_FFFF
"""For "..", whose number only the kernel knows (``FUSE_UNKNOWN_INO`` in libfuse)."""

log = logging.getLogger(__name__)


class Listings:
    """Lists the directories of one tree, some of them before they are asked for."""

    def __init__(self, tree: ImageTree, patience_s: float) -> None:
        """List what is in ``tree``.

        Args:
            tree: what to list.
            patience_s: how long a listing may go on once it has something to hand out.
        """
        self.curious = Curious()
        self._tree = tree
        self._patience_s = patience_s
        self._ahead = Ahead()

    async def names(self, directory: NodeId, request: bytes) -> Answer:
        """Answer READDIR."""
        position, size = decode_read(request)
        if position == END:
            return b""
        listing = replies.Listing(size, plus=False)
        await self._list(listing, Wanted(directory, position, size, False))
        return listing.buffer

    async def with_attributes(self, directory: NodeId, request: bytes) -> Answer:
        """Answer READDIRPLUS: with attributes of what will be looked at."""
        position, size = decode_read(request)
        if position == END:  # as in every second request: the kernel has no other way to hear it
            return b""
        with_files = self.curious.lists(decode_thread(request), directory)
        wanted = Wanted(directory, position, size, with_files)
        answer = self._ahead.take(wanted)
        if answer is None:
            listing = replies.Listing(size, plus=True)
            follow = await self._list(listing, wanted)
            answer = listing.buffer
            if not self._tree.grows:
                self._ahead.expect(wanted, follow)
        return answer

    async def prepare(self) -> bool:
        """Make a listing that will be asked for, from what is at hand; False: there is none."""
        wanted = self._ahead.next()
        if wanted is None:
            return False
        listing = replies.Listing(wanted.size, plus=True)
        with trio.CancelScope() as at_hand:
            at_hand.cancel()
            try:
                follow = await self._list(listing, wanted)
            except Exception as error:  # noqa: BLE001 - for him who asks, who will get it again
                log.debug("node %d is not listed beforehand: %s", wanted.directory, error)
            else:
                self._ahead.keep(wanted, listing.buffer)
                self._ahead.expect(wanted, follow)
        return True

    async def _list(self, listing: replies.Listing, wanted: Wanted) -> Sequence[Wanted]:
        """List names: as many as the tree gives at once, and there is room for.

        Returns:
            What is likely to be asked for next.
        """
        directory, position, size, with_files = wanted
        entries = await self._tree.entries(directory, max(0, position - POSITION_AFTER_DOTDOT))
        if position < POSITION_AFTER_DOT:
            listing.add(b".", directory, stat.S_IFDIR, POSITION_AFTER_DOT)
        if position < POSITION_AFTER_DOTDOT:
            listing.add(b"..", UNKNOWN_INODE, stat.S_IFDIR, POSITION_AFTER_DOTDOT)
        entries = entries[: listing.most]
        shown: dict[NodeId, bytes] = {}
        if with_files:
            entries = entries[: await self._look_patiently(directory, entries, shown)]
        elif listing.plus and not self._tree.grows:
            for entry in entries:
                if entry.file_type == stat.S_IFDIR:
                    await self._look_at(directory, entry, shown)
        added = listing.add_all(entries, POSITION_AFTER_DOTDOT, shown)
        follow = [
            Wanted(node, 0, size, with_files)
            for _, node, file_type, _ in entries[:added]
            if file_type == stat.S_IFDIR and node in shown
        ]
        if added and listing.position != END:
            follow.insert(0, Wanted(directory, listing.position, size, with_files))
        return follow

    async def _look_patiently(
        self, directory: NodeId, entries: Sequence[DirectoryEntry], shown: dict[NodeId, bytes]
    ) -> int:
        """Look at all entries, some of which may have to be waited for.

        Once one was looked at, neither an error nor lack of time loses it: the listing stops
        there, and the next request meets the trouble as its first entry.

        Returns:
            At how many it has looked.
        """
        looked = 0
        with trio.CancelScope() as patience:
            try:
                for entry in entries:
                    await self._look_at(directory, entry, shown)
                    looked += 1
                    if looked == 1:
                        patience.deadline = trio.current_time() + self._patience_s
            except Exception:
                if not looked:
                    raise
        return looked

    async def _look_at(
        self, directory: NodeId, entry: DirectoryEntry, shown: dict[NodeId, bytes]
    ) -> None:
        """Note in ``shown`` what the listing tells the kernel about an entry, if it is sound."""
        if entry.file_type == stat.S_IFDIR:
            found = await self._folder(directory, entry)
        else:
            found = await self._entry_if_sound(entry)
        if found is not replies.NO_ENTRY:
            shown[entry.node] = found

    async def _folder(self, directory: NodeId, entry: DirectoryEntry) -> bytes:
        """What a listing tells the kernel about a directory in it; nothing if it is not sound.

        The kernel goes into a directory without looking it up once it knows it, so the tree has
        to see now that a broken image has it in several places. Nobody has asked for that yet,
        so only what is at hand is looked at.
        """
        attributes = await self._tree.listed_directory(directory, entry)
        if attributes is not None:
            with suppress(ImageFormatError):
                return replies.encode_entry(entry.node, attributes)
        return replies.NO_ENTRY

    async def _entry_if_sound(self, entry: DirectoryEntry) -> bytes:
        """What a listing tells the kernel about a file; a broken inode costs only itself."""
        try:
            attributes = await self._tree.attributes(entry.node)
            if stat.S_IFMT(attributes.mode) == entry.file_type:
                return replies.encode_entry(entry.node, attributes)
        except Exception as error:
            if not isinstance(first_cause(error), ImageFormatError):
                raise
        return replies.NO_ENTRY
