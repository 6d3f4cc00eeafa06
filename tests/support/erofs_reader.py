"""The whole tree of an EROFS image through the project's reader, as plain values."""

from typing import NamedTuple

from lazyfs.erofs.image import Image, Inode, open_image
from lazyfs.model import Nid
from lazyfs.steps import Need, run


class Found(NamedTuple):
    nid: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    nlink: int
    rdev: tuple[int, int]
    content: bytes
    xattrs: dict[bytes, bytes]


class ImageInMemory:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.image: Image = run(open_image(), self._read)

    def _read(self, need: Need) -> bytes:
        assert need.device == 0
        assert 0 <= need.offset <= need.offset + need.length <= len(self.data)
        return self.data[need.offset : need.offset + need.length]

    def names(self, inode: Inode) -> dict[bytes, Nid]:
        names: dict[bytes, Nid] = {}
        position = 0
        while entries := run(self.image.entries(inode, position), self._read):
            names |= {entry.name: entry.nid for entry in entries}
            position = entries[-1].next_position
        return names

    def tree(self) -> dict[bytes, Found]:
        """Everything by path; the root is ``b"."``."""
        found: dict[bytes, Found] = {}
        pending = [(b".", self.image.root_nid, self.image.root_nid)]
        while pending:
            path, nid, parent = pending.pop()
            inode = run(self.image.inode(nid), self._read)
            content = b""
            if inode.is_directory:
                names = self.names(inode)
                assert list(names) == sorted(names)
                assert names.pop(b".") == nid
                assert names.pop(b"..") == parent
                for name, child in names.items():
                    entry = run(self.image.lookup(inode, name), self._read)
                    assert entry.nid == child
                    pending.append((path + b"/" + name if path != b"." else name, child, nid))
            elif inode.is_symlink:
                content = run(self.image.link_target(inode), self._read)
            elif inode.is_regular:
                content = run(self.image.read(inode, 0, inode.size_bytes), self._read)
            found[path] = Found(
                nid,
                inode.mode,
                (inode.uid, inode.gid),
                inode.mtime_s * 1_000_000_000 + inode.mtime_ns,
                inode.size_bytes,
                inode.nlink,
                inode.rdev,
                content,
                dict(run(self.image.xattrs(inode), self._read)),
            )
        return found
