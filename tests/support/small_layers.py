"""A small image with a shell, of three layers that change each other, for overlays and containers.

What runs in it is Debian's static busybox, so that it needs nothing else.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.images import TAG, LayerFile, noise, pack, write, write_layout
from tests.support.lazy_mounts import convert

BUSYBOX = Path("/bin/busybox")
"""Of the package busybox-static."""

APPLETS = ("sh", "cat", "id", "ls", "sleep", "kill", "stat", "find", "env", "mount", "stty", "tty")
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""``security.capability`` of a file: cap_net_raw=ep (linux/capability.h, revision 2)."""

ENTRIES = (
    ("passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1234:2345:a web server:/srv:/bin/sh\n"),
    ("group", "root:x:0:\nweb:x:2345:\nextra:x:3456:web,root\nlogs:x:4567:web\n"),
)


def make_layers(folder: Path) -> list[LayerFile]:
    """The three layers as tar files in ``folder``, bottom layer first."""
    trees = [folder / str(number) for number in range(3)]
    _bottom(trees[0])
    _middle(trees[1])
    _top(trees[2])
    return [pack(tree, folder / f"{tree.name}.tar.gz") for tree in trees]


def _bottom(tree: Path) -> None:
    for name in ("dev", "proc", "sys", "tmp", "root", "srv", "etc", "var/lib/kept"):
        (tree / name).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, write(tree / "bin/busybox", mode=0o755))
    for name in APPLETS:
        os.symlink("busybox", tree / "bin" / name)
    for name, text in ENTRIES:
        write(tree / "etc" / name, text.encode())
    write(tree / "data/large", noise(3 << 20))
    write(tree / "data/first", b"one file of two names")
    os.link(tree / "data/first", tree / "data/second")
    write(tree / "data/to-go", b"deleted above")
    write(tree / "data/changed", b"the old one")
    write(tree / "gone/one", b"x")
    write(tree / "hidden/old", b"hidden by an opaque directory")
    write(tree / "moved/inside/file", b"deep")
    capable = write(tree / "capable/busybox", BUSYBOX.read_bytes(), 0o755)
    os.setxattr(capable, "security.capability", CAPABILITY)
    os.setxattr(write(tree / "data/marked", b"x"), "user.mark", b"of the bottom layer")
    os.setxattr(tree / "data/marked", "trusted.mark", b"for root")
    shutil.copy("/bin/cat", write(tree / "set-id/cat"))  # busybox gives up such rights
    os.chown(tree / "set-id/cat", 1234, 2345)
    (tree / "set-id/cat").chmod(0o6755)
    os.mknod(tree / "srv/zero", 0o020666, os.makedev(1, 5))


def _middle(tree: Path) -> None:
    write(tree / "data/.wh.to-go")
    write(tree / ".wh.gone")
    write(tree / "data/changed", b"the new one")
    write(tree / "hidden/.wh..wh..opq")
    write(tree / "hidden/new", b"shown")


def _top(tree: Path) -> None:
    write(tree / "gone/two", b"born again without what was in it")
    write(tree / "data/third", b"of the top layer")


@dataclass(frozen=True)
class SmallImage:
    """The image as OCI layout folders."""

    name: str
    """Converted, as ``lazyfs`` wants it."""
    layout: Path
    """With the tar layers."""
    cache: Path
    """A cache folder for its mounts."""


def small_image(folder: Path) -> SmallImage:
    """Make the image in an empty folder."""
    write_layout(folder / "layout", make_layers(folder))
    name = f"oci:{folder}/lazy:app"
    convert(f"oci:{folder}/layout:{TAG}", name)
    return SmallImage(name, folder / "layout", folder / "cache")
