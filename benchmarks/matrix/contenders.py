"""Who takes part: ours in each mode, full pulls, and peers that are installed.

To add one of ours: a line in ``OURS_BY_NAME`` (and its name in ``plan.OURS``); a peer: a file in
``benchmarks/peers``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.contenders import Contender, Lazyfs, PullErofs, PullUnpack
from benchmarks.matrix.images import MatrixImage
from benchmarks.matrix.peers import Peer, PeerContender

TIMEOUT = ("--timeout", "5m")
"""A slow line is no dead one."""
NO_PROFILE = (*TIMEOUT, "--prefetch", "guess")
"""As for an image that has none."""
BARE = (*TIMEOUT, "--prefetch", "none")


class Place:
    """An image as contenders see it."""

    def __init__(self, image: MatrixImage, host: str, folder: Path) -> None:
        self.image = image
        self.host = host
        """Of the line to the registry."""
        self.folder = folder

    def name(self, form: str) -> str:
        """The full name of one form of the image: ``tar``, ``seekable``, ``hot``."""
        return f"{self.host}/{self.image.name}:{form}"


def _ours(form: str, driver: str, options: tuple[str, ...]) -> Callable[[str, Place], Contender]:
    def make(name: str, place: Place) -> Contender:
        image = place.name(form)
        return Lazyfs(name, place.folder, image, remote=True, driver=driver, options=options)

    return make


CONTENDERS: Mapping[str, Callable[[str, Place], Contender]] = {
    "fuse": _ours("seekable", "fuse", NO_PROFILE),
    "fuse+profile": _ours("seekable", "fuse", TIMEOUT),
    "hot+profile": _ours("hot", "fuse", TIMEOUT),
    "kernel": _ours("seekable", "kernel", NO_PROFILE),
    "kernel+profile": _ours("seekable", "kernel", TIMEOUT),
    "fuse-bare": _ours("seekable", "fuse", BARE),
    "kernel-bare": _ours("seekable", "kernel", BARE),
    "pull-unpack": lambda name, place: PullUnpack(name, place.folder, place.name("tar")),
    "pull-erofs": lambda name, place: PullErofs(name, place.folder, place.name("seekable")),
}
PROFILED = {"fuse+profile": "seekable", "kernel+profile": "seekable", "hot+profile": "hot"}
"""Which form's profile they go by."""


def contender(name: str, place: Place, peers: Mapping[str, Peer]) -> Contender:
    """Make a contender ready for its first start."""
    if name in peers:
        return PeerContender(peers[name], place.folder, place.host, place.image.name)
    return CONTENDERS[name](name, place)
