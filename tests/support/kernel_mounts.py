"""EROFS images mounted by the kernel, from a file or by a loop device, one layer on another."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from lazyfs.newmount import MOUNT_ATTR_RDONLY, FileSystem, attach
from tests.support.overlay_oracle import mount_erofs, overlay, run

Way = Callable[[Path, Path], AbstractContextManager[Path]]


@contextlib.contextmanager
def file_backed(image: Path, target: Path) -> Iterator[Path]:
    """Mount an image without a loop device, which mount(8) never does."""
    target.mkdir(parents=True, exist_ok=True)
    with FileSystem("erofs") as erofs:
        erofs.set("source", os.fspath(image))
        descriptor = erofs.mount(MOUNT_ATTR_RDONLY)
    attach(descriptor, os.fspath(target))
    os.close(descriptor)
    try:
        yield target
    finally:
        run("umount", "--lazy", target)


by_loop: Way = lambda image, target: mount_erofs(image, target)  # noqa: E731 - one of two ways


@contextlib.contextmanager
def stacked(images: Sequence[Path], folder: Path, way: Way) -> Iterator[Path]:
    """The tree of images, bottom layer first."""
    with contextlib.ExitStack() as mounts:
        for number, image in enumerate(images):
            mounts.enter_context(way(image, folder / str(number)))
        yield mounts.enter_context(overlay(folder, len(images)))
