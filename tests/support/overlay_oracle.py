"""What the kernel shows of an image: its EROFS or plain folders under its overlayfs.

Nothing here uses our code: layers are decoded by ``zstd``, or unpacked by GNU tar.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

COMMAND_WITHIN_S = 300
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command, which must succeed."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_WITHIN_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def decode(blob: Path, image: Path) -> Path:
    """The raw image in a layer blob, as any zstd decoder gives it."""
    image.parent.mkdir(parents=True, exist_ok=True)
    run("zstd", "-dcq", blob, "-o", image)
    return image


@contextlib.contextmanager
def mount(target: Path, *words: str | Path, cwd: Path | None = None) -> Iterator[Path]:
    """A mount by the kernel, for the block."""
    target.mkdir(parents=True, exist_ok=True)
    run("mount", *words, target, cwd=cwd)
    try:
        yield target
    finally:
        run("umount", "--lazy", target)


def mount_erofs(image: Path, target: Path) -> contextlib.AbstractContextManager[Path]:
    """A raw EROFS image, mounted by the kernel as it is."""
    return mount(target, "-t", "erofs", "-o", "ro,loop", image)


@contextlib.contextmanager
def erofs_overlay(images: Sequence[Path], folder: Path) -> Iterator[Path]:
    """The tree of some raw EROFS images, bottom layer first, each mounted by the kernel."""
    with contextlib.ExitStack() as mounts:
        for number, image in enumerate(images):
            mounts.enter_context(mount_erofs(image, folder / str(number)))
        yield mounts.enter_context(overlay(folder, len(images)))


@contextlib.contextmanager
def tar_overlay(tars: Sequence[Path], folder: Path) -> Iterator[Path]:
    """The tree of some tar layers, bottom layer first, each unpacked by GNU tar."""
    for number, tar in enumerate(tars):
        layer = folder / str(number)
        layer.mkdir(parents=True)
        how = ("--numeric-owner", "--same-owner", "--acls", "--xattrs", "--xattrs-include=*")
        run("tar", "-C", layer, "-xpf", tar, *how)
        translate_whiteouts(layer)
    with overlay(folder, len(tars)) as target:
        yield target


@contextlib.contextmanager
def overlay(folder: Path, count: int) -> Iterator[Path]:
    """The folders ``0`` (bottom) to ``count - 1``, at least two, as one tree; read only."""
    # Short names, because all of them together must fit into one page.
    lower = ":".join(str(number) for number in reversed(range(count)))
    options = f"ro,lowerdir={lower}"
    with mount(folder / "merged", "-t", "overlay", "-o", options, "overlay", cwd=folder) as target:
        yield target


def translate_whiteouts(layer: Path) -> None:
    """Turn ``.wh.`` files into what overlayfs has for them, leaving times as they were."""
    for path, _, files in os.walk(os.fsencode(layer)):
        for name in map(os.fsdecode, files):
            if not name.startswith(WHITEOUT):
                continue
            folder = Path(os.fsdecode(path))
            before = folder.stat()
            (folder / name).unlink()
            if name == OPAQUE:
                os.setxattr(folder, "trusted.overlay.opaque", b"y")
            else:
                os.mknod(folder / name.removeprefix(WHITEOUT), 0o020000, os.makedev(0, 0))
            os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
