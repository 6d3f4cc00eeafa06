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
from lazyfs.model import DirectoryEntry, NodeId

LISTING_SHARE = 0.5
"""Part of its deadline that a listing may go on for once it has something to hand out."""

POSITION_AFTER_DOT = 1
POSITION_AFTER_DOTDOT = 2
"""Positions of a listing: 0, these two for "." and "..", then the tree's own plus 2."""

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
        listing = replies.Listing(size, plus=False)
        await self._list(listing, Wanted(directory, position, size, False))
        return listing.buffer

    async def with_attributes(self, directory: NodeId, request: bytes) -> Answer:
        """Answer READDIRPLUS: with attributes of what will be looked at."""
        position, size = decode_read(request)
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
        if not entries:
            return ()
        folders: list[NodeId] = []
        if with_files:
            await self._add_patiently(listing, wanted, entries, folders)
        else:
            await self._add(listing, wanted, entries, folders)
        if listing.position <= position:  # there was no room
            return ()
        return [
            Wanted(directory, listing.position, size, with_files),
            *[Wanted(folder, 0, size, with_files) for folder in folders],
        ]

    async def _add_patiently(
        self,
        listing: replies.Listing,
        wanted: Wanted,
        entries: Sequence[DirectoryEntry],
        folders: list[NodeId],
    ) -> None:
        """Add entries, all with attributes, some of which may have to be waited for.

        Once one is in, neither an error nor lack of time loses it: the listing stops there, and
        the next request meets the trouble as its first entry.
        """
        with trio.CancelScope() as patience:
            try:
                if await self._add(listing, wanted, entries[:1], folders):
                    patience.deadline = trio.current_time() + self._patience_s
                    await self._add(listing, wanted, entries[1:], folders)
            except Exception:
                if listing.position <= POSITION_AFTER_DOTDOT:
                    raise

    async def _add(
        self,
        listing: replies.Listing,
        wanted: Wanted,
        entries: Sequence[DirectoryEntry],
        folders: list[NodeId],
    ) -> bool:
        """Add entries to a listing, up to the first for which there is no room.

        Args:
            listing: what to add them to.
            wanted: what it is to be.
            entries: of the directory.
            folders: get those that the kernel can go into without looking them up.

        Returns:
            Whether there was room for all.
        """
        directory, _, _, with_files = wanted
        with_folders = listing.plus and (with_files or not self._tree.grows)
        for entry in entries:
            name, node, file_type, position = entry
            shown = replies.NO_ENTRY
            if file_type == stat.S_IFDIR:
                if with_folders:
                    shown = await self._folder(directory, entry)
            elif with_files:
                shown = await self._entry_if_sound(entry)
            if not listing.add(name, node, file_type, position + POSITION_AFTER_DOTDOT, shown):
                return False
            if file_type == stat.S_IFDIR and shown is not replies.NO_ENTRY:
                folders.append(node)
        return True

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
