"""EROFS images for tests: a tree with a bit of everything, walks, and what is expected."""

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import zstandard

from lazyfs.erofs.crc32c import crc32c
from lazyfs.erofs.image import Image, Inode, open_image
from lazyfs.errors import LazyfsError, TruncatedRecordError
from lazyfs.model import Nid
from lazyfs.steps import Derive, Need, Request, Steps

DATA = Path(__file__).parent.parent / "data" / "erofs"

T = TypeVar("T")

Facts = dict[str, object]
"""What ``stat``, ``readlink``, ``listxattr`` and reading tell of one entry."""


# --- a tree -------------------------------------------------------------------------------------


def make_tree(root: Path, longest_name: int = 255) -> None:
    """Make the tree of the golden images below ``root``; needs root for owners and devices."""
    rng = random.Random(11)
    noise = rng.randbytes(9000)
    words = b"".join(b"%d bottles of beer on the wall, " % (n * n) for n in range(4000))
    files = {
        "size/0": b"",
        "size/1": b"x",
        "size/4095": words[:4095],
        "size/4096": words[:4096],
        "size/4097": words[:4097],
        "size/text": words[:60000],
        "size/zeros": bytes(300_000),
        "data/noise": noise,
        "data/mixed": words[:9001] + noise + words[9000:30000] + noise[100:2000] + bytes(9000),
        "data/dup1": words[:20000] + noise[:999],
        "data/dup2": words[:20000] + noise[:999],
        "data/near": words[:18000] + b"!" + words[:20000],
        "owner": b"big ids\n",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(70_000)
        sparse.seek(40_000)
        sparse.write(b"in the middle")
    os.chown(root / "owner", 1_000_000, 70_001)
    (root / "data/noise").chmod(0o4711)
    (root / "many").mkdir()
    for number in range(320):
        (root / f"many/{number:03} a name of middling length").touch()
    (root / "a/b/c/d/e").mkdir(parents=True)
    (root / "a/b/c/d/e/deep").write_bytes(b"down here")
    (root / "empty").mkdir(mode=0o1777)
    (root / "empty").chmod(0o1777)
    os.mkdir(bytes(root) + b"/odd")
    for odd in (b"!first", b"\xff\xfe not utf-8", b"new\nline", b"~", b"n" * longest_name):
        (Path(os.fsdecode(bytes(root) + b"/odd/" + odd))).write_bytes(odd)
    os.symlink("a/b/c", root / "short")
    os.symlink("/".join(["long"] * 700), root / "long")
    os.link(root / "data/dup1", root / "hard")
    os.mkfifo(root / "fifo")
    os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    os.mknod(root / "block", stat.S_IFBLK | 0o640, os.makedev(259, 70_000))
    for number in range(6):  # the same often enough to be shared
        os.setxattr(root / f"many/00{number} a name of middling length", "user.shared.same", b"yes")
    os.setxattr(root / "size/text", "user.big", rng.randbytes(20) * 60)
    os.setxattr(root / "size/text", "trusted.overlay.metacopy", b"")
    os.setxattr(root / "empty", "trusted.overlay.opaque", b"y")
    os.setxattr(
        root / "size/1", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12)
    )
    acl = bytes.fromhex("02000000010007000000000002000600010000000400050000000000")
    acl = acl.replace(b"\1\0\7\0\0\0\0\0", b"\1\0\7\0\xff\xff\xff\xff")
    acl = acl.replace(b"\4\0\5\0\0\0\0\0", b"\4\0\5\0\xff\xff\xff\xff")
    acl += bytes.fromhex("10000700ffffffff20000100ffffffff")
    os.setxattr(root / "a", "system.posix_acl_default", acl)
    os.setxattr(root / "a/b", "system.posix_acl_access", acl)
    paths = sorted(root.rglob("*"), key=lambda path: len(path.parts), reverse=True)
    for number, path in enumerate([*paths, root]):
        when = 1_600_000_000 * 10**9 + number * 1_000_000_007
        os.utime(path, ns=(when, when), follow_symlinks=False)


def make_image(tool: str, source: Path, image: Path, *options: str) -> None:
    """Run a mkfs.erofs."""
    subprocess.run([tool, *options, image, source], check=True, capture_output=True)


def packaged_mkfs() -> str:
    """The mkfs.erofs of the system."""
    tool = shutil.which("mkfs.erofs")
    assert tool, "needs erofs-utils"
    return tool


# --- what a tree should be ----------------------------------------------------------------------


def facts_of_tree(root: Path) -> dict[str, Facts]:
    """Every entry below a mounted or real folder, by path; the root is ``"."``."""
    top = os.fsencode(root)
    found = {".": _facts(top)}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[_key(os.path.relpath(path, top))] = _facts(path)
    return found


def _facts(path: bytes) -> Facts:
    status = os.lstat(path)
    names = os.listxattr(path, follow_symlinks=False)
    content = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = _key(os.readlink(path))
    return {
        "mode": status.st_mode,
        "owner": [status.st_uid, status.st_gid],
        "nlink": status.st_nlink,
        "size": status.st_size,
        "mtime": status.st_mtime_ns,
        "rdev": [os.major(status.st_rdev), os.minor(status.st_rdev)],
        "blocks": status.st_blocks,
        "content": content,
        "xattrs": {
            _key(os.fsencode(name)): os.getxattr(path, name, follow_symlinks=False).hex()
            for name in names
        },
    }


def _key(name: bytes) -> str:
    return name.decode("latin-1")


# --- golden images ------------------------------------------------------------------------------


def golden_names() -> list[str]:
    """The golden images, by name."""
    return sorted(path.name.removesuffix(".erofs.zst") for path in DATA.glob("*.erofs.zst"))


def golden_devices(name: str) -> list[bytes]:
    """Bytes of a golden image and of its extra device, if it has one."""
    devices = [_unpacked(DATA / f"{name}.erofs.zst")]
    extra = DATA / f"{name}.device.zst"
    if extra.exists():
        devices.append(_unpacked(extra))
    return devices


def golden_facts() -> dict[str, dict[str, Facts]]:
    """What the kernel shows of each golden image."""
    facts: dict[str, dict[str, Facts]] = json.loads(_unpacked(DATA / "expected.json.zst"))
    return facts


def _unpacked(path: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


def sealed(image: bytearray) -> bytes:
    """The image with the checksum that its superblock should have."""
    bits = image[1024 + 12]
    length = (1 << min(bits, 16)) - (1024 if bits > 10 else 0)
    image[1024 + 4 : 1024 + 8] = bytes(4)
    checksum = crc32c(bytes(image[1024 : 1024 + length]))
    image[1024 + 4 : 1024 + 8] = checksum.to_bytes(4, "little")
    return bytes(image)


# --- images through the reader ------------------------------------------------------------------


class WorkLimitError(Exception):
    """More requests than a walk may make: not an error of lazyfs, so no walk passes over it."""


class ImageFiles:
    """An image whose devices are in memory, with counters of what it was asked for."""

    def __init__(
        self, devices: list[bytes], *, flat: bool = False, most_needs: int = 10**9
    ) -> None:
        self.devices = devices
        self.asked: list[Need] = []
        self.needed_bytes = 0
        self.derived: dict[tuple[int, ...], bytes] = {}
        self._most_needs = most_needs
        self.image: Image = self.run(open_image(flat=flat))

    @property
    def needs(self) -> int:
        """How many requests for bytes there were."""
        return len(self.asked)

    def run(self, steps: Steps[T]) -> T:
        """Run steps, keeping what was derived."""
        try:
            request = next(steps)
            while True:
                try:
                    data = self._answer(request)
                except LazyfsError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(data)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _answer(self, request: Request) -> bytes:
        if isinstance(request, Need):
            return self._read(request)
        if request.key not in self.derived:
            self.derived[request.key] = self._derive(request)
        return self.derived[request.key]

    def _derive(self, request: Derive) -> bytes:
        data = request.compute([self._read(need) for need in request.inputs])
        assert len(data) <= request.size_bytes
        return data

    def _read(self, need: Need) -> bytes:
        assert need.offset >= 0, need
        assert 0 < need.length <= 1024 * 1024, need
        self.asked.append(need)
        self.needed_bytes += need.length
        if self.needs > self._most_needs:
            raise WorkLimitError
        if need.device >= len(self.devices):
            raise TruncatedRecordError(f"no device {need.device}")
        device = self.devices[need.device]
        if need.offset + need.length > len(device):
            raise TruncatedRecordError(f"{need} of {len(device)}")
        return device[need.offset : need.offset + need.length]

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, Nid, int]]:
        """(name, nid, file type) of all entries but the dots."""
        position = 0
        while entries := self.run(self.image.entries(directory, position)):
            for entry in entries:
                if entry.name not in (b".", b".."):
                    yield entry.name, entry.nid, entry.file_type
            assert entries[-1].next_position > position
            position = entries[-1].next_position

    def content(self, inode: Inode, piece: int = 131072) -> bytes:
        """All data of a file, read in pieces."""
        pieces = []
        offset = 0
        while data := self.run(self.image.read(inode, offset, piece)):
            pieces.append(data)
            offset += len(data)
        return b"".join(pieces)

    def facts(self) -> dict[str, Facts]:
        """Every entry by path, as ``facts_of_tree`` has it."""
        root = self.run(self.image.inode(self.image.root_nid))
        found = {}
        pending = [("", root)]
        while pending:
            path, inode = pending.pop()
            found[path or "."] = self._facts(inode)
            if inode.is_directory:
                for name, nid, file_type in self.entries(inode):
                    entry = self.run(self.image.lookup(inode, name))
                    assert (entry.nid, entry.file_type) == (nid, file_type)
                    child = self.run(self.image.inode(nid))
                    assert stat.S_IFMT(child.mode) == file_type
                    if child.is_directory:
                        assert self.run(self.image.parent_nid(child)) == inode.nid
                    pending.append((f"{path}/{_key(name)}" if path else _key(name), child))
        return found

    def _facts(self, inode: Inode) -> Facts:
        attributes = inode.attributes()
        content = None
        if inode.is_regular:
            content = hashlib.sha256(self.content(inode)).hexdigest()
        elif inode.is_symlink:
            content = _key(self.run(self.image.link_target(inode)))
        xattrs = self.run(self.image.xattrs(inode))
        return {
            "mode": attributes.mode,
            "owner": [attributes.uid, attributes.gid],
            "nlink": attributes.nlink,
            "size": attributes.size_bytes,
            "mtime": attributes.mtime_s * 10**9 + attributes.mtime_ns,
            "rdev": [attributes.rdev_major, attributes.rdev_minor],
            "blocks": attributes.blocks_512,
            "content": content,
            "xattrs": {_key(name): value.hex() for name, value in xattrs.items()},
        }

    def inode_at(self, path: bytes) -> Inode:
        """The inode of a path below the root."""
        inode = self.run(self.image.inode(self.image.root_nid))
        for name in path.split(b"/"):
            inode = self.run(self.image.inode(self.run(self.image.lookup(inode, name)).nid))
        return inode

    def survey(self, most_entries: int = 500) -> int:
        """Try everything on a possibly broken image; how many operations succeeded.

        Only errors of lazyfs are passed over, whatever else is a bug.
        """
        done = 0

        def attempt(steps: Callable[[], Steps[T]]) -> T | None:
            nonlocal done
            try:
                result = self.run(steps())
            except LazyfsError:
                return None
            done += 1
            return result

        image = self.image
        pending = [image.root_nid]
        seen: set[Nid] = set()
        while pending and len(seen) < most_entries:
            nid = pending.pop()
            if nid in seen:
                continue
            seen.add(nid)
            inode = attempt(lambda nid=nid: image.inode(nid))  # type: ignore[misc]
            if inode is None:
                continue
            attempt(lambda inode=inode: image.xattrs(inode))  # type: ignore[misc]
            attempt(lambda inode=inode: image.link_target(inode))  # type: ignore[misc]
            size = inode.size_bytes
            for offset in (0, size // 2, max(size - 5000, 0)):
                data = attempt(lambda i=inode, o=offset: image.read(i, o, 20_000))  # type: ignore[misc]
                assert data is None or len(data) == max(0, min(20_000, size - offset))
            attempt(lambda inode=inode: image.extents(inode, 0, 1 << 20))  # type: ignore[misc]
            position = 0
            for _ in range(64):
                entries = attempt(lambda i=inode, p=position: image.entries(i, p))  # type: ignore[misc]
                if not entries:
                    break
                position = entries[-1].next_position
                pending += [entry.nid for entry in entries]
                attempt(lambda i=inode, e=entries[0]: image.lookup(i, e.name))  # type: ignore[misc]
        return done
