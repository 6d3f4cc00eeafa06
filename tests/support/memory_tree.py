"""An ImageTree in memory, with files that fail or wait as their names say.

Run as a program it is the ``lazyfs`` command whose images are the trees below, by name
(``basic``, ``big``, ...), the daemon in the background included: that is how tests mount one.
The tree then lives in the daemon's process, so tests steer it by paths in a folder whose name
stands behind the image's, as in ``basic@/tmp/x``: a file ``stuck`` there, while it exists,
makes reads of ``stuck`` wait.
"""

import dataclasses
import errno
import os
import stat
import sys
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parents[2]))

import trio

from lazyfs import errors
from lazyfs.layer.counters import LayerCounters
from lazyfs.model import ROOT_NODE, Attributes, DirectoryEntry, NodeId
from lazyfs.mount.figures import Figures
from lazyfs.mount.options import MountOptions

DEFAULT_ATTRIBUTES = Attributes(
    mode=0,
    uid=0,
    gid=0,
    nlink=1,
    size_bytes=0,
    mtime_s=1_600_000_000,
    mtime_ns=123_456_789,
    rdev_major=0,
    rdev_minor=0,
    blocks_512=0,
)

ENTRIES_AT_ONCE = 100

FAILURES: dict[bytes, Exception] = {
    b"format": errors.ImageFormatError("inode 7: broken"),
    b"unsupported": errors.UnsupportedFeatureError("inode 7: layout 5"),
    b"digest": errors.DigestMismatchError("chunk 3: wanted sha512:aa, got sha512:bb"),
    b"unavailable": errors.SourceUnavailableError("registry.test: connection refused"),
    b"late": errors.DeadlineExceededError("registry.test: nothing within 1 s"),
    b"oserror": OSError(errno.ENOSPC, "no space"),
    b"runtime": RuntimeError("a bug"),
    b"key": KeyError("a bug"),
    b"group": ExceptionGroup("nursery", [errors.ImageFormatError("inside a group")]),
    b"bad-group": ExceptionGroup("nursery", [ValueError("inside a group")]),
}


@dataclass
class Node:
    """One object of the tree."""

    attributes: Attributes
    data: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, NodeId] = field(default_factory=dict)
    broken_attributes: Exception | None = None
    no_attributes: bool = False
    """Asked for attributes, it never answers."""


class MemoryTree:
    """A tree built by ``add``; counts its calls."""

    grows = False

    def __init__(self, switches: Path | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.switches = switches
        self.nodes: dict[NodeId, Node] = {}
        self._next = 1
        self._new(Node(DEFAULT_ATTRIBUTES._replace(mode=stat.S_IFDIR | 0o755, nlink=2)))

    def _new(self, node: Node) -> NodeId:
        number = NodeId(self._next)
        self._next += 1
        self.nodes[number] = node
        return number

    def add(
        self, path: str, mode: int, data: bytes = b"", xattrs: Mapping[bytes, bytes] = {}, **changes
    ) -> NodeId:
        """Add an object; ``changes`` are fields of its Attributes."""
        *parents, name = os.fsencode(path).split(b"/")
        directory = self.nodes[ROOT_NODE]
        for parent in parents:
            directory = self.nodes[directory.children[parent]]
        changes = {"size_bytes": len(data), "blocks_512": -(-len(data) // 512)} | changes
        attributes = DEFAULT_ATTRIBUTES._replace(mode=mode, **changes)
        number = self._new(Node(attributes, data, dict(xattrs)))
        directory.children[name] = number
        return number

    def link(self, path: str, node: NodeId) -> None:
        """Add another name in the root for a node."""
        self.nodes[ROOT_NODE].children[os.fsencode(path)] = node

    async def lookup(self, parent: NodeId, name: bytes) -> NodeId:
        self.calls["lookup"] += 1
        node = self.nodes[parent]
        if not stat.S_ISDIR(node.attributes.mode):
            raise errors.NotADirectoryNodeError
        while name.startswith(b"held") and self._is_on("held"):
            await trio.sleep(0.01)
        if name not in node.children:
            raise errors.NoSuchEntryError(os.fsdecode(name))
        return node.children[name]

    async def parent(self, directory: NodeId) -> NodeId:
        self.calls["parent"] += 1
        if not stat.S_ISDIR(self.nodes[directory].attributes.mode):
            raise errors.NotADirectoryNodeError
        above = (node for node, found in self.nodes.items() if directory in found.children.values())
        return next(above, ROOT_NODE)

    async def attributes(self, node: NodeId) -> Attributes:
        self.calls["attributes"] += 1
        found = self.nodes[node]
        if found.no_attributes:
            await trio.sleep_forever()
        if found.broken_attributes is not None:
            raise found.broken_attributes
        return found.attributes

    async def listed_directory(self, directory: NodeId, entry: DirectoryEntry) -> Attributes | None:
        self.calls["attributes"] += 1
        found = self.nodes[entry.node]
        if found.no_attributes or found.broken_attributes is not None:
            return None
        return found.attributes

    async def entries(self, directory: NodeId, start: int) -> Sequence[DirectoryEntry]:
        self.calls["entries"] += 1
        names = list(self.nodes[directory].children.items())
        if not stat.S_ISDIR(self.nodes[directory].attributes.mode):
            raise errors.NotADirectoryNodeError
        return [
            DirectoryEntry(name, node, stat.S_IFMT(self.nodes[node].attributes.mode), position)
            for position, (name, node) in enumerate(
                names[start : start + ENTRIES_AT_ONCE], start + 1
            )
        ]

    async def read(self, node: NodeId, offset: int, length: int) -> bytes:
        self.calls["read"] += 1
        found = self.nodes[node]
        if not stat.S_ISREG(found.attributes.mode):
            raise errors.NotAFileNodeError
        behaviour, _, what = found.data.partition(b":")
        if behaviour == b"fail":
            raise FAILURES[what]
        if behaviour == b"wait":
            while self._is_on(os.fsdecode(what)):
                await trio.sleep(0.01)
        if behaviour == b"hog":
            while self._is_on(os.fsdecode(what)):
                time.sleep(0.3)  # what a handler must never do
                await trio.lowlevel.checkpoint()
        if behaviour == b"die":
            os._exit(3)
        return found.data[offset : offset + length]

    def _is_on(self, switch: str) -> bool:
        return self.switches is not None and (self.switches / switch).exists()

    async def link_target(self, node: NodeId) -> bytes:
        self.calls["link_target"] += 1
        if not stat.S_ISLNK(self.nodes[node].attributes.mode):
            raise errors.NotASymlinkNodeError
        return self.nodes[node].data

    async def xattrs(self, node: NodeId) -> Mapping[bytes, bytes]:
        self.calls["xattrs"] += 1
        return self.nodes[node].xattrs


def basic_tree(switches: Path | None) -> MemoryTree:
    """One of everything."""
    tree = MemoryTree(switches)
    tree.add("hello", stat.S_IFREG | 0o644, b"hello world\n")
    hard = tree.add("hard1", stat.S_IFREG | 0o600, b"same", nlink=2, uid=1000, gid=1001)
    tree.link("hard2", hard)
    tree.add("link", stat.S_IFLNK | 0o777, b"hello")
    tree.add("dangling", stat.S_IFLNK | 0o777, b"/nowhere/" + b"x" * 4000)
    tree.add("dir", stat.S_IFDIR | 0o755, nlink=3)
    tree.add("dir/sub", stat.S_IFDIR | 0o700, nlink=2)
    tree.add("dir/sub/file", stat.S_IFREG | 0o644, b"deep")
    tree.add("null", stat.S_IFCHR | 0o666, rdev_major=1, rdev_minor=3)
    tree.add("block", stat.S_IFBLK | 0o660, rdev_major=259, rdev_minor=0x12345)
    tree.add("fifo", stat.S_IFIFO | 0o600)
    tree.add("socket", stat.S_IFSOCK | 0o600)
    tree.add("suid", stat.S_IFREG | 0o4755, b"#!/bin/sh\n")
    tree.add("old", stat.S_IFREG | 0o644, mtime_s=-2, mtime_ns=999_999_999)
    tree.add("ancient", stat.S_IFREG | 0o644, mtime_s=-(1 << 40), mtime_ns=0)
    tree.add("future", stat.S_IFREG | 0o644, mtime_s=1 << 40, mtime_ns=1)
    tree.add("owner", stat.S_IFREG | 0o644, uid=0xFFFF_FFFE, gid=0x8000_0000)
    tree.add("sparse", stat.S_IFREG | 0o644, b"", size_bytes=1 << 45, blocks_512=8)
    tree.add(os.fsdecode(b"odd \xff\n name"), stat.S_IFREG | 0o644, b"odd")
    tree.add("n" * 255, stat.S_IFREG | 0o644, b"long")
    xattrs = {b"user.small": b"1", b"user.empty": b"", b"user.big": b"v" * 60_000}
    tree.add("xattrs", stat.S_IFREG | 0o644, b"x", xattrs)
    acl = bytes.fromhex("0200000001000600ffffffff02000400fffe0000") + bytes.fromhex(
        "04000000ffffffff10000400ffffffff20000000ffffffff"
    )  # user::rw-, user:65279:r--, group::---, mask::r--, other::---
    tree.add("acl", stat.S_IFREG | 0o640, b"for one", {b"system.posix_acl_access": acl})
    tree.add("large", stat.S_IFREG | 0o644, bytes(range(256)) * 16384)
    tree.add("program", stat.S_IFREG | 0o755, Path("/bin/sleep").read_bytes())
    tree.add("fail", stat.S_IFDIR | 0o755)
    for name in FAILURES:
        tree.add(f"fail/{name.decode()}", stat.S_IFREG | 0o644, b"fail:" + name, size_bytes=4096)
    tree.add("die", stat.S_IFREG | 0o644, b"die:", size_bytes=4096)
    for number in range(64):
        tree.add(f"wait{number}", stat.S_IFREG | 0o644, b"wait:wait" + b"." * number)
    for number in range(4):
        tree.add(f"hog{number}", stat.S_IFREG | 0o644, b"hog:hog" + b"." * number)
    return tree


def big_tree(switches: Path | None) -> MemoryTree:
    """10,000 files in one directory."""
    tree = MemoryTree(switches)
    tree.add("big", stat.S_IFDIR | 0o755)
    for number in range(10_000):
        tree.add(f"big/file-{number:05}", stat.S_IFREG | 0o644, b"%d" % number)
    return tree


def broken_tree(switches: Path | None) -> MemoryTree:
    """Directories with inodes that cannot be had."""
    tree = MemoryTree(switches)
    for name, error in FAILURES.items():
        directory = name.decode()
        tree.add(directory, stat.S_IFDIR | 0o755)
        tree.add(f"{directory}/before", stat.S_IFREG | 0o644, b"before")
        broken = tree.add(f"{directory}/broken", stat.S_IFREG | 0o644, b"broken")
        tree.nodes[broken].broken_attributes = error
        tree.add(f"{directory}/behind", stat.S_IFREG | 0o644, b"behind")
        tree.add(f"{directory}-folder", stat.S_IFDIR | 0o755)
        broken = tree.add(f"{directory}-folder/broken", stat.S_IFDIR | 0o755)
        tree.nodes[broken].broken_attributes = error
        tree.add(f"{directory}-folder/behind", stat.S_IFREG | 0o644, b"behind")
        tree.add(f"{directory}-sound", stat.S_IFDIR | 0o755)
        tree.add(f"{directory}-sound/known", stat.S_IFREG | 0o644, b"known")
    return tree


def slow_tree(switches: Path | None) -> MemoryTree:
    """A listing that never comes to its end."""
    tree = MemoryTree(switches)
    tree.add("before", stat.S_IFREG | 0o644, b"before")
    tree.add("folder", stat.S_IFDIR | 0o755)
    tree.add("folder/before", stat.S_IFREG | 0o644)
    tree.nodes[tree.add("folder/silent", stat.S_IFREG | 0o644)].no_attributes = True
    tree.nodes[tree.add("silent", stat.S_IFDIR | 0o755)].no_attributes = True
    tree.add("sound", stat.S_IFDIR | 0o755)
    tree.add("sound/known", stat.S_IFREG | 0o644)
    return tree


def file_root_tree(switches: Path | None) -> MemoryTree:
    """Not a file system: the root is a file."""
    tree = MemoryTree(switches)
    tree.nodes[ROOT_NODE].attributes = DEFAULT_ATTRIBUTES._replace(mode=stat.S_IFREG)
    return tree


LINGERS_S = 0.5

TREES = {
    "basic": basic_tree,
    "big": big_tree,
    "broken": broken_tree,
    "slow": slow_tree,
    "file-root": file_root_tree,
}


@dataclass(frozen=True)
class MemoryImage:
    """A MemoryTree as an opened image."""

    tree: MemoryTree
    name: str

    layer_files = None

    @property
    def pin(self) -> str:
        return f"pin of {self.name}"

    async def explain(self, path: bytes) -> dict[str, object]:
        return {"path": os.fsdecode(path)}

    async def reads(self) -> dict[str, object]:
        return {"problem": "nothing is recorded"}

    def figures(self) -> Figures:
        layer = LayerCounters(notes=["no dm-verity: checked by SHA-512 only"])
        return Figures(self.name, None, [layer], size_bytes=1 << 20)

    async def status(self) -> dict[str, object]:
        """The keys of a real image, with made-up figures."""
        layer = {
            "digest": "sha256:" + "ab" * 32,
            "mode": "seekable",
            "lazy": True,
            "why": "it has a chunk table",
            "verity": "none",
            "size_bytes": 1 << 20,
            "blob_bytes": 1 << 19,
            "fetched_bytes": 4096,
            "requests": 2,
            "chunks": 16,
            "chunks_cached": 1,
            "errors": 0,
            "last_error": None,
            "notes": ["no dm-verity: checked by SHA-512 only"],
        }
        totals = {
            "fetched_bytes": 4096,
            "read_bytes": 8192,
            "requests": 2,
            "cache_hits": 3,
            "cache_misses": 1,
            "verification_failures": 0,
            "errors": 0,
        }
        return {
            "image": self.name,
            "digest": "sha256:" + "cd" * 32,
            "platform": "linux/amd64",
            "verify": "always",
            "layers": [layer],
            "totals": totals,
            "cache": {"path": "/nowhere", "usage_bytes": 4096, "limit_bytes": None},
            "calls": dict(self.tree.calls),
        }


@asynccontextmanager
async def open_image(name: str, options: MountOptions) -> AsyncIterator[MemoryImage]:
    """Open one of ``TREES``, or fail as asked."""
    kind, _, folder = name.partition("@")
    switches = Path(folder) if folder else None
    if switches is not None and (switches / "gone").exists():
        raise errors.SourceUnavailableError("registry.test: gone")
    if kind == "refused":
        raise errors.PlanError("layer 3 is not EROFS")
    if kind == "bug":
        raise ZeroDivisionError("a bug")
    if kind == "exit":
        os._exit(7)
    if kind == "gated" and switches is not None:
        unfinished = switches / ".waiting"
        unfinished.write_text(str(os.getpid()))
        unfinished.rename(switches / "waiting")
        while (switches / "closed").exists():
            await trio.sleep(0.01)
        kind = "basic"
    if kind == "never":
        await trio.sleep_forever()
    lingers_s = 0.0
    if kind == "lingering":  # it takes its time to end, as one that has fetches under way
        kind, lingers_s = "basic", LINGERS_S
    yield MemoryImage(TREES[kind](switches), name)
    with trio.CancelScope(shield=True):
        await trio.sleep(lingers_s)


WATCHDOG_VARIABLE = "LAZYFS_TEST_WATCHDOG_S"


def be_impatient() -> bool:
    """Have supervisor and daemon wait for a shorter time for each other, if a test wants that."""
    if WATCHDOG_VARIABLE not in os.environ:
        return False
    from lazyfs.mount import supervision

    supervision.WATCHDOG_S = float(os.environ[WATCHDOG_VARIABLE])
    return True


OLD_KERNEL_VARIABLE = "LAZYFS_TEST_OLD_KERNEL"


def pretend_an_old_kernel() -> None:
    """Be told nothing of RESEND, as before Linux 6.9, if a test wants that."""
    if OLD_KERNEL_VARIABLE not in os.environ:
        return
    from lazyfs.fuse import kernelmount, protocol

    def decode_init(request: bytes) -> protocol.Offer:
        offer = protocol.decode_init(request)
        return dataclasses.replace(offer, features=offer.features & ~protocol.Feature.HAS_RESEND)

    vars(kernelmount)["decode_init"] = decode_init


def main() -> int:
    """Be ``lazyfs``, or its daemon, or its supervisor."""
    impatient = be_impatient()
    pretend_an_old_kernel()
    if sys.argv[1:2] == ["--supervisor"]:
        from lazyfs.mount import supervisor

        del sys.argv[1]
        return supervisor.main()
    stand_in = types.ModuleType("lazyfs.mount.openers")
    stand_in.open_named = open_image  # type: ignore[attr-defined]
    sys.modules["lazyfs.mount.openers"] = stand_in
    from lazyfs.mount import asking

    vars(asking)["asked_about"] = lambda _name: None
    if sys.argv[1:2] == ["--daemon"]:
        from lazyfs.mount import background

        return background.main(sys.argv[2:])
    from lazyfs.cli.main import main as lazyfs_main
    from lazyfs.mount import start

    start.DAEMON_COMMAND = (sys.executable, __file__, "--daemon")
    if impatient:
        start.SUPERVISOR_COMMAND = (sys.executable, "-P", __file__, "--supervisor")
    return lazyfs_main()


if __name__ == "__main__":
    sys.exit(main())
