"""A file system in memory whose disk fails on demand: ``sick_disk MOUNTPOINT CONTROL``.

The file CONTROL holds words: ``read`` and ``write`` are what fails with EIO just now. Nothing is
cached by the kernel, so that each read and write of a file gets here. Prints a line when it is
mounted, and ends with its mount.
"""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from lazyfs.fuse import replies
from lazyfs.fuse.counters import Counters
from lazyfs.fuse.errno_table import ErrnoError
from lazyfs.fuse.protocol import (
    IN_HEADER,
    MIN_BUFFER_BYTES,
    Opcode,
    decode_init,
    encode_init_reply,
)
from lazyfs.fuse.requests import decode_name, decode_read
from lazyfs.fuse.server import Handler, Server
from lazyfs.model import ROOT_NODE, Attributes, NodeId

DISK_BLOCKS = 64 << 8
BLOCK = 4096

BODY = IN_HEADER.size
FATTR_MODE, FATTR_SIZE, FATTR_MTIME = 1 << 0, 1 << 3, 1 << 5
SETATTR_IN = struct.Struct("=I4x8xQ8x8xQ8x4xI4xI")
"""``fuse_setattr_in``: valid, size, mtime, mtimensec, mode; the others are passed over."""
WRITE_IN = struct.Struct("=QQI20x")
"""``fuse_write_in``: fh, offset, size."""
DIRECT_IO = 1 << 0
OPEN_OUT = struct.Struct("=QII")


@contextmanager
def sick_disk(mountpoint: Path, control: Path) -> Iterator[None]:
    """Such a disk, for the time of the block."""
    mountpoint.mkdir()
    control.write_text("")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.support.sick_disk",
        mountpoint,
        control,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        yield
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=False)
        process.kill()
        process.communicate()


@dataclass
class Node:
    mode: int
    data: bytearray = field(default_factory=bytearray)
    children: dict[bytes, NodeId] = field(default_factory=dict)
    mtime_ns: int = 0


class Disk:
    """Operations for ``lazyfs.fuse.server``; what writing says is decoded here."""

    deadline_s = 60.0

    def __init__(self, control: Path) -> None:
        self.counters = Counters()
        self.control = control
        self.nodes: dict[NodeId, Node] = {ROOT_NODE: Node(stat.S_IFDIR | 0o700)}
        self.last = int(ROOT_NODE)
        self.handlers: dict[int, Handler] = {
            Opcode[name.upper()]: getattr(self, name)
            for name in (
                *("lookup", "getattr", "setattr", "mkdir", "create", "open", "opendir", "release"),
                *("releasedir", "readdirplus", "read", "write", "unlink", "rmdir", "rename"),
                *("rename2", "statfs"),
            )
        }

    def errno_for(self, operation: str, node: NodeId, error: Exception, began_s: float) -> int:
        sys.stderr.write(f"{operation} of {node}: {error!r}\n")
        return errno.EIO

    def fail(self, what: str) -> None:
        if what in self.control.read_text().split():
            raise ErrnoError(errno.EIO)

    async def statfs(self, _node: NodeId, _request: bytes) -> bytes:
        free = (DISK_BLOCKS, DISK_BLOCKS, DISK_BLOCKS)
        return struct.pack("=QQQQQIIII24x", *free, 0, 0, BLOCK, 255, BLOCK, 0)

    def attributes(self, node: NodeId) -> Attributes:
        found = self.nodes[node]
        time_s, time_ns = divmod(found.mtime_ns, 10**9)
        size = len(found.data)
        return Attributes(
            found.mode, os.getuid(), os.getgid(), 1, size, time_s, time_ns, 0, 0, -(-size // 512)
        )

    def entry(self, node: NodeId) -> bytes:
        entry = replies.encode_entry(node, self.attributes(node))
        return entry[:16] + bytes(16) + entry[32:]  # valid for no time

    async def getattr(self, node: NodeId, _request: bytes = b"") -> bytes:
        return bytes(8) + replies.encode_attributes(node, self.attributes(node))[8:]

    async def lookup(self, parent: NodeId, request: bytes) -> bytes:
        self.fail("read")
        found = self.nodes[parent].children.get(decode_name(request))
        if found is None:
            raise ErrnoError(errno.ENOENT)
        return self.entry(found)

    async def setattr(self, number: NodeId, request: bytes) -> bytes:
        self.fail("write")
        node = self.nodes[number]
        valid, size, mtime_s, mtime_ns, mode = SETATTR_IN.unpack_from(request, BODY)
        if valid & FATTR_SIZE:
            node.data = node.data[:size].ljust(size, b"\0")
        if valid & FATTR_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if valid & FATTR_MTIME:
            node.mtime_ns = mtime_s * 10**9 + mtime_ns
        return await self.getattr(number)

    def make(self, parent: NodeId, name: bytes, mode: int) -> NodeId:
        self.fail("write")
        children = self.nodes[parent].children
        if name in children:
            raise ErrnoError(errno.EEXIST)
        self.last += 1
        number = children[name] = NodeId(self.last)
        self.nodes[number] = Node(mode, mtime_ns=time.time_ns())
        return number

    async def mkdir(self, parent: NodeId, request: bytes) -> bytes:
        (mode,) = struct.unpack_from("=I", request, BODY)
        name = decode_name(request, BODY + 8)
        return self.entry(self.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode)))

    async def create(self, parent: NodeId, request: bytes) -> bytes:
        _, mode = struct.unpack_from("=II", request, BODY)
        number = self.make(parent, decode_name(request, BODY + 16), mode)
        return self.entry(number) + OPEN_OUT.pack(0, DIRECT_IO, 0)

    async def open(self, _node: NodeId, _request: bytes) -> bytes:
        self.fail("read")
        return OPEN_OUT.pack(0, DIRECT_IO, 0)

    async def opendir(self, _node: NodeId, _request: bytes) -> bytes:
        self.fail("read")
        return replies.OPEN_OUT

    async def release(self, _node: NodeId, _request: bytes) -> bytes:
        return b""

    releasedir = release

    async def prepare(self) -> bool:
        return False

    async def readdirplus(self, directory: NodeId, request: bytes) -> bytearray:
        wanted = decode_read(request)
        listing = replies.Listing(wanted.size, plus=True)
        names = sorted(self.nodes[directory].children.items(), key=lambda item: item[1])
        for name, node in names:
            mode = self.nodes[node].mode
            if node > wanted.offset and not listing.add(name, node, stat.S_IFMT(mode), node):
                break
        return listing.buffer

    async def read(self, node: NodeId, request: bytes) -> bytes:
        self.fail("read")
        wanted = decode_read(request)
        return bytes(self.nodes[node].data[wanted.offset : wanted.offset + wanted.size])

    async def write(self, node: NodeId, request: bytes) -> bytes:
        self.fail("write")
        _, offset, size = WRITE_IN.unpack_from(request, BODY)
        content = request[BODY + WRITE_IN.size :][:size]
        data = self.nodes[node].data
        data.extend(bytes(max(0, offset + size - len(data))))
        data[offset : offset + size] = content
        return struct.pack("=II", size, 0)

    async def unlink(self, parent: NodeId, request: bytes) -> bytes:
        self.fail("write")
        if self.nodes[parent].children.pop(decode_name(request), None) is None:
            raise ErrnoError(errno.ENOENT)
        return b""

    rmdir = unlink

    async def rename(self, parent: NodeId, request: bytes) -> bytes:
        return self.move(parent, request, 8)

    async def rename2(self, parent: NodeId, request: bytes) -> bytes:
        return self.move(parent, request, 16)

    def move(self, parent: NodeId, request: bytes, before_names: int) -> bytes:
        self.fail("write")
        (target,) = struct.unpack_from("=Q", request, BODY)
        old, new = decode_names(request, BODY + before_names)
        node = self.nodes[parent].children.pop(old, None)
        if node is None:
            raise ErrnoError(errno.ENOENT)
        self.nodes[target].children[new] = node
        return b""


def decode_names(request: bytes, offset: int) -> tuple[bytes, bytes]:
    old, new = request[offset:-1].split(b"\0")
    return old, new


def main(mountpoint: str, control: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    words = (os.fsencode(word) for word in ("sick", mountpoint, "fuse"))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*words, ctypes.c_ulong(0), data.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    os.write(device, encode_init_reply(decode_init(os.read(device, MIN_BUFFER_BYTES))))
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    trio.run(Server(device, Disk(Path(control))).serve)


if __name__ == "__main__":
    main(*sys.argv[1:])
