"""Node ids: which layer and which inode, packed in one number.

FUSE node ids must mean the same for as long as the kernel remembers them, also to a daemon
that was restarted meanwhile. So they are not handed out but computed:

    bits 0..49   nid (bit 50: the nid's metabox flag, which EROFS has in bit 63)
    bits 51..62  layer, counted from the bottom

plus 2, since 0 is invalid and 1 is the root.
"""

from typing import NamedTuple

from lazyfs.errors import ImageFormatError
from lazyfs.model import ROOT_NODE, Nid, NodeId

_NID_BITS = 50
_METABOX_NID = 1 << 63
_METABOX_NODE = 1 << _NID_BITS
_LAYER_SHIFT = _NID_BITS + 1
_FIRST = 2

MAX_LAYER = (1 << 12) - 2
"""Highest layer number that fits; the packed id stays below 2**63."""


class Place(NamedTuple):
    """Where an object lies: layer (0 is the bottom one) and inode in it."""

    layer: int
    nid: Nid


def node_of(place: Place) -> NodeId:
    """The node id of an object that is not the root.

    Raises:
        ImageFormatError: the nid is beyond what any image can have.
    """
    return node_in(*place)


def node_in(layer: int, nid: Nid) -> NodeId:
    """As ``node_of``, for who asks often.

    Raises:
        ImageFormatError: the nid is beyond what any image can have.
    """
    if nid >> _NID_BITS:
        if not nid & _METABOX_NID or (nid ^ _METABOX_NID) >> _NID_BITS:
            raise ImageFormatError(f"nid {nid} is out of range")
        nid = Nid(nid ^ _METABOX_NID | _METABOX_NODE)
    return NodeId((layer << _LAYER_SHIFT | nid) + _FIRST)


def place_of(node: NodeId) -> Place:
    """Where the object of a node id lies; not for the root."""
    return Place(node - _FIRST >> _LAYER_SHIFT, nid_of(node))


def nid_of(node: NodeId) -> Nid:
    """Which inode of its layer the object of a node id is; not for the root."""
    if node <= ROOT_NODE:
        raise AssertionError("the root has no place of its own")
    packed = node - _FIRST
    nid = packed & (_METABOX_NODE - 1)
    return Nid(nid | _METABOX_NID if packed & _METABOX_NODE else nid)
