"""Everything that can be seen of a tree of files, and how two trees differ."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

Facts = Mapping[str, object]
"""What is known of one entry, by the names that ``differences`` prints."""

MAX_SHOWN = 25

MADE_BY_TAR = frozenset(
    {"mode", "uid", "gid", "mtime_ns", "rdev", "xattrs", "target", "content", "links"}
)
"""What a tar says, and so what every way of unpacking one must agree about."""


def look(root: Path) -> dict[bytes, Facts]:
    """All facts about all entries, by path; the root itself is ``b"."``."""
    top = os.fsencode(root)
    first_names: dict[tuple[int, int], bytes] = {}
    return {
        os.path.relpath(path, top): facts(path, kind, top, first_names)
        for path, kind in sorted(entries(top))
    }


def entries(top: bytes) -> Iterator[tuple[bytes, int]]:
    """Paths, and what the listing says of each entry's type."""
    yield top, stat.S_IFDIR
    folders = [top]
    while folders:
        for entry in os.scandir(folders.pop()):
            kind = 0
            if entry.is_symlink():
                kind = stat.S_IFLNK
            elif entry.is_dir(follow_symlinks=False):
                kind = stat.S_IFDIR
                folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                kind = stat.S_IFREG
            yield entry.path, kind


def facts(
    path: bytes, listed_kind: int, top: bytes, first_names: dict[tuple[int, int], bytes]
) -> Facts:
    """All facts about one entry; ``first_names`` remembers inodes that have several names."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    shown = kind if kind in (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG) else 0
    relative = os.path.relpath(path, top)
    found: dict[str, object] = {
        "listed as": stat.filemode(listed_kind),
        "lists as it is": listed_kind == shown,
        "mode": stat.filemode(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "nlink": status.st_nlink,
        "mtime_ns": status.st_mtime_ns,
        "atime_ns": status.st_atime_ns,
        "ctime_ns": status.st_ctime_ns,
        "rdev": (os.major(status.st_rdev), os.minor(status.st_rdev)),
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }
    if kind != stat.S_IFDIR:
        inode = (status.st_dev, status.st_ino)
        found["links"] = first_names.setdefault(inode, relative)
    if kind == stat.S_IFLNK:
        found["target"] = os.readlink(path)
    if kind == stat.S_IFREG:
        with open(path, "rb", buffering=0) as file:
            found["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def differences(
    found: Mapping[bytes, Facts], wanted: Mapping[bytes, Facts], only: frozenset[str] = frozenset()
) -> list[str]:
    """One line for each difference; ``only`` limits which facts are compared (empty: all)."""
    lines = [f"{path!r} is missing" for path in wanted.keys() - found.keys()]
    lines += [f"{path!r} should not be there" for path in found.keys() - wanted.keys()]
    for path in found.keys() & wanted.keys():
        for name in found[path].keys() | wanted[path].keys():
            left, right = found[path].get(name), wanted[path].get(name)
            if left != right and (not only or name in only):
                lines.append(f"{path!r}: {name} is {left!r}, not {right!r}")
    return sorted(lines)


def assert_same(
    found: Mapping[bytes, Facts], wanted: Mapping[bytes, Facts], only: frozenset[str] = frozenset()
) -> None:
    """Fail with the first differences, if there are any."""
    lines = differences(found, wanted, only)
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:MAX_SHOWN])
