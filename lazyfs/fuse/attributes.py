"""Attributes of a node as pyfuse3 wants them.

The image never changes, so the kernel may keep entries and attributes for ever; that is
what makes a warm mount fast.
"""

import os
import stat

import pyfuse3

from lazyfs.model import Attributes, NodeId

FOREVER_S = float("inf")
"""libfuse turns it into the largest time that the kernel knows."""

NANOSECONDS = 1_000_000_000


def entry_attributes(node: NodeId, attributes: Attributes) -> pyfuse3.EntryAttributes:
    """What the kernel keeps for ever about ``node``.

    Raises:
        OverflowError: a value does not fit ``struct stat`` (the image is broken).
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node
    entry.generation = 0
    entry.entry_timeout = FOREVER_S
    entry.attr_timeout = FOREVER_S
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = os.makedev(attributes.rdev_major, attributes.rdev_minor)
    entry.st_size = attributes.size_bytes
    entry.st_blksize = 4096
    entry.st_blocks = attributes.blocks_512
    time_ns = attributes.mtime_s * NANOSECONDS + attributes.mtime_ns
    entry.st_mtime_ns = time_ns
    entry.st_ctime_ns = time_ns
    entry.st_atime_ns = time_ns
    return entry


def absent_entry() -> pyfuse3.EntryAttributes:
    """That a name does not exist, as the kernel remembers it (``ENOENT`` it would forget)."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = FOREVER_S
    return entry


def bare_entry(node: NodeId, file_type: int) -> pyfuse3.EntryAttributes:
    """A name in a listing whose attributes are not known now.

    Everything but number and type is a stand-in that expires at once: whoever wants to
    know asks, and then gets the attributes or the error.
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node
    entry.entry_timeout = 0
    entry.attr_timeout = 0
    entry.st_mode = stat.S_IFMT(file_type) or stat.S_IFREG
    return entry
