"""What an image under construction leaves open, and what the layers below it say of that.

A layer may have files in a directory that it does not describe, and hard links to files of lower
layers. Unpacking layers over each other, such a directory is the one that is there already, with
its owner and mode; if there is a symlink in its place, the files go where that points. An image
has no way to leave a directory undescribed, so these things are looked up while it is made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lazyfs.erofs.build.paths import split_path
from lazyfs.erofs.build.tree import (
    IMPLIED_DIRECTORY,
    Attributes,
    Directory,
    HardLink,
    Inode,
    Symlink,
    Tree,
)

MAX_REDIRECTS = 40
"""Symlinks of lower layers that are followed for one path, as in Linux."""


@dataclass(frozen=True, slots=True)
class LowerNames:
    """What one layer says of directories; paths as ``b"usr/lib"``, the root is ``b""``."""

    directories: Mapping[bytes, Attributes | None] = field(default_factory=dict)
    """None: it has something in the directory, but does not describe it."""
    symlinks: Mapping[bytes, bytes] = field(default_factory=dict)
    hidden: frozenset[bytes] = frozenset()
    """Paths that lower layers may have and that are gone."""
    opaque: frozenset[bytes] = frozenset()
    """Directories of which nothing in lower layers is left."""

    def hides(self, path: bytes) -> bool:
        """Whether lower layers' ``path`` is not seen through this layer."""
        return any(
            ancestor in self.hidden or (ancestor in self.opaque and ancestor != path)
            for ancestor in _ancestors(path)
        )


class Gaps(NamedTuple):
    """What an image leaves open."""

    directories: tuple[bytes, ...]
    """Paths of directories that are not described, outer ones first."""
    links: tuple[tuple[bytes, bytes], ...]
    """Hard links whose target is not in the image: path and target."""


def find_gaps(tree: Tree) -> Gaps:
    """What a tree leaves open when all entries are in."""
    directories = []
    links = []
    for path, directory in _walk(tree.root):
        if directory.attributes is IMPLIED_DIRECTORY:
            directories.append(path)
        for name, child in directory.children.items():
            if isinstance(child, HardLink) and not tree.has_target(child.target):
                links.append((path + b"/" + name if path else name, child.target))
    return Gaps(tuple(directories), tuple(links))


def names_of(tree: Tree) -> LowerNames:
    """What a tree says to layers above it."""
    directories: dict[bytes, Attributes | None] = {}
    symlinks: dict[bytes, bytes] = {}
    hidden = set()
    opaque = set()
    for path, directory in _walk(tree.root):
        implied = directory.attributes is IMPLIED_DIRECTORY
        directories[path] = None if implied else directory.attributes
        if directory.opaque:
            opaque.add(path)
        for name, child in directory.children.items():
            inner = path + b"/" + name if path else name
            if isinstance(child, Symlink):
                symlinks[inner] = child.target
            elif isinstance(child, Inode) and child.is_whiteout:
                hidden.add(inner)
    return LowerNames(directories, symlinks, frozenset(hidden), frozenset(opaque))


def find_below(layers: Sequence[LowerNames], path: bytes) -> Attributes | bytes | None:
    """What a directory's path means in lower layers.

    Args:
        layers: topmost first.
        path: whose parents are directories in them.

    Returns:
        The directory's attributes, a symlink's target, or None for nothing.
    """
    for names in layers:
        if path in names.symlinks:
            return names.symlinks[path]
        attributes = names.directories.get(path)
        if attributes is not None:
            return attributes
        if path in names.opaque or names.hides(path):
            return None
    return None


def resolve_below(layers: Sequence[LowerNames], path: bytes) -> bytes | None:
    """A path with the symlinks on its way in lower layers followed; its last name is kept.

    None if they lead out of the image or in circles.
    """
    left = split_path(path)[::-1]
    done: list[bytes] = []
    for _ in range(MAX_REDIRECTS + 1):
        while left:
            name = left.pop()
            if name == b"..":
                done = done[:-1]
                continue
            done.append(name)
            found = find_below(layers, b"/".join(done)) if left else None
            if isinstance(found, bytes):
                done = [] if found.startswith(b"/") else done[:-1]
                left += [part for part in reversed(found.split(b"/")) if part not in (b"", b".")]
                break
        else:
            return b"/".join(done)
    return None


def _walk(root: Directory) -> Iterator[tuple[bytes, Directory]]:
    """All directories with their paths, outer ones first."""
    pending = [(b"", root)]
    while pending:
        path, directory = pending.pop()
        yield path, directory
        for name, child in directory.children.items():
            if isinstance(child, Directory):
                pending.append((path + b"/" + name if path else name, child))


def _ancestors(path: bytes) -> Iterator[bytes]:
    """The path itself and what it lies in, without the root."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
