"""What a path means, and what each layer has under it: for people who wonder.

``follow`` asks the tree that is served; ``sightings`` looks into each layer by itself and says
what hides what, by the rules of ``lazyfs.overlay``.
"""

import stat
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from lazyfs.errors import LazyfsError, NoSuchEntryError, NotADirectoryNodeError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.interfaces import ImageTree
from lazyfs.model import ROOT_NODE, Nid, NodeId
from lazyfs.overlay import is_opaque, is_whiteout

MAX_LINKS = 40
"""Symbolic links on a path, as in the kernel (``MAXSYMLINKS``)."""

MAX_PATH_BYTES = 4096


class Link(NamedTuple):
    """A symbolic link that was followed."""

    at: bytes
    target: bytes


class Route:
    """How a path was walked so far; good to look at also when the walk failed."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        """The path without links."""
        self.links: list[Link] = []
        self.node: NodeId | None = None
        """What is there; None if nothing is, or it is not known yet."""
        self.missing = False


async def follow(tree: ImageTree, path: bytes, route: Route) -> None:
    """Walk a path from the root of the tree; links on the way are followed, the last is not.

    Raises:
        LazyfsError: the tree cannot tell, or there are too many links.
    """
    if len(path) > MAX_PATH_BYTES:
        raise LazyfsError(f"a path of {len(path)} bytes")
    rest = [name for name in path.split(b"/") if name not in (b"", b".")]
    nodes = [ROOT_NODE]
    while rest:
        name = rest.pop(0)
        if name == b"..":
            if route.names:
                route.names.pop()
                nodes.pop()
            continue
        try:
            node = await tree.lookup(nodes[-1], name)
        except (NoSuchEntryError, NotADirectoryNodeError):
            route.names += [name, *rest]
            route.missing = True
            return
        mode = (await tree.attributes(node)).mode
        if stat.S_ISLNK(mode) and rest:
            target = await tree.link_target(node)
            route.links.append(Link(b"/" + b"/".join([*route.names, name]), target))
            if len(route.links) > MAX_LINKS:
                raise LazyfsError(f"more than {MAX_LINKS} symbolic links")
            if target.startswith(b"/"):
                route.names, nodes = [], nodes[:1]
            rest = [part for part in target.split(b"/") if part not in (b"", b".")] + rest
            continue
        route.names.append(name)
        nodes.append(node)
    route.node = nodes[-1]


class Sighting(NamedTuple):
    """What one layer has of a path."""

    layer: int
    """From 0 at the bottom."""
    what: str
    """``file``, ``directory``, ``link``, ``device``, or what ends the path above its last name:
    ``whiteout``, or ``not a directory``."""
    at: bytes
    """Where that is."""
    nid: Nid
    hidden_by: str | None
    """What hides it; None if it shows."""


async def sightings(
    layers: Sequence[ErofsLayer], names: Sequence[bytes]
) -> AsyncIterator[Sighting]:
    """What the layers have of a path without links, the topmost first.

    Raises:
        LazyfsError: a layer cannot tell.
    """
    hidden_by: str | None = None
    for number in reversed(range(len(layers))):
        layer = layers[number]
        nid, depth, mode, opaque = layer.image.root_nid, 0, stat.S_IFDIR, False
        for name in names:
            if not stat.S_ISDIR(mode):
                break
            try:
                nid = (await layer.lookup(nid, name)).nid
            except NoSuchEntryError:
                break
            depth += 1
            inode = await layer.inode(nid)
            mode = inode.mode
            shown = inode.attributes()
            if is_whiteout(mode, shown.rdev_major, shown.rdev_minor):
                mode = 0
            elif stat.S_ISDIR(mode):
                opaque = opaque or is_opaque(await layer.xattrs(nid))
        at = b"/" + b"/".join(names[:depth])
        whole = depth == len(names)
        what = _kind(mode)
        label = f"layer {number + 1}"
        if whole or not stat.S_ISDIR(mode):
            if not whole and mode:
                what = "not a directory"
            yield Sighting(number, what, at, nid, hidden_by)
        if hidden_by is not None:
            continue
        if not stat.S_ISDIR(mode):
            place = at.decode(errors="backslashreplace")
            hidden_by = f"{label}: {what} {place}"
        elif opaque:
            hidden_by = f"{label}: an opaque directory on the way"


def _kind(mode: int) -> str:
    kinds = {0: "whiteout", stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return kinds.get(stat.S_IFMT(mode), "device")
