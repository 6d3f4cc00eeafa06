"""A file system in memory whose disk fails on demand: ``sick_disk MOUNTPOINT CONTROL``.

The file CONTROL holds words: ``read`` and ``write`` are what fails with EIO just now. Nothing is
cached by the kernel, so that each read and write of a file gets here. Prints a line when it is
mounted, and ends with its mount.
"""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

DISK_BLOCKS = 64 << 8
BLOCK = 4096


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
    children: dict[bytes, int] = field(default_factory=dict)
    mtime_ns: int = 0


class Disk(pyfuse3.Operations):
    def __init__(self, control: Path) -> None:
        super().__init__()
        self.control = control
        root = Node(stat.S_IFDIR | 0o700)
        self.nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: root}
        self.last = int(pyfuse3.ROOT_INODE)

    def fail(self, what: str) -> None:
        if what in self.control.read_text().split():
            raise pyfuse3.FUSEError(errno.EIO)

    async def statfs(self, ctx):
        values = pyfuse3.StatvfsData()
        values.f_bsize = values.f_frsize = BLOCK
        values.f_blocks = values.f_bfree = values.f_bavail = DISK_BLOCKS
        values.f_namemax = 255
        return values

    async def getattr(self, inode, ctx=None):
        node = self.nodes[inode]
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = node.mode
        entry.st_nlink = 1
        entry.st_size = len(node.data)
        entry.st_mtime_ns = entry.st_atime_ns = entry.st_ctime_ns = node.mtime_ns
        entry.st_uid = os.getuid()
        entry.st_gid = os.getgid()
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent_inode, name, ctx=None):
        self.fail("read")
        inode = self.nodes[parent_inode].children.get(name)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(inode)

    async def setattr(self, inode, attr, fields, fh, ctx):
        self.fail("write")
        node = self.nodes[inode]
        if fields.update_size:
            size = attr.st_size
            node.data = node.data[:size].ljust(size, b"\0")
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        return await self.getattr(inode)

    def make(self, parent_inode: int, name: bytes, mode: int) -> int:
        self.fail("write")
        children = self.nodes[parent_inode].children
        if name in children:
            raise pyfuse3.FUSEError(errno.EEXIST)
        self.last += 1
        self.nodes[self.last] = Node(mode, mtime_ns=time.time_ns())
        children[name] = self.last
        return self.last

    async def mkdir(self, parent_inode, name, mode, ctx):
        return await self.getattr(self.make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode)))

    async def create(self, parent_inode, name, mode, flags, ctx):
        inode = self.make(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode))
        return pyfuse3.FileInfo(fh=inode, direct_io=True), await self.getattr(inode)

    async def open(self, inode, flags, ctx):
        self.fail("read")
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def opendir(self, inode, ctx):
        self.fail("read")
        return inode

    async def readdir(self, fh, start_id, token):
        names = sorted(self.nodes[fh].children.items(), key=lambda item: item[1])
        for name, inode in names:
            if inode > start_id and not pyfuse3.readdir_reply(
                token, name, await self.getattr(inode), inode
            ):
                return

    async def read(self, fh, off, size):
        self.fail("read")
        return bytes(self.nodes[fh].data[off : off + size])

    async def write(self, fh, off, buf):
        self.fail("write")
        data = self.nodes[fh].data
        data.extend(bytes(max(0, off + len(buf) - len(data))))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def unlink(self, parent_inode, name, ctx):
        self.fail("write")
        if self.nodes[parent_inode].children.pop(name, None) is None:
            raise pyfuse3.FUSEError(errno.ENOENT)

    async def rmdir(self, parent_inode, name, ctx):
        await self.unlink(parent_inode, name, ctx)

    async def rename(self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx):
        self.fail("write")
        inode = self.nodes[parent_inode_old].children.pop(name_old, None)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        self.nodes[parent_inode_new].children[name_new] = inode


def main(mountpoint: str, control: str) -> None:
    options = {"fsname=sick", "default_permissions", "allow_other"}
    pyfuse3.init(Disk(Path(control)), mountpoint, options)
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
