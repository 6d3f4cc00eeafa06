"""Stacks of layers against the kernel's overlayfs over the kernel's EROFS."""

import os
import random
import stat
from pathlib import Path

import pytest

from lazyfs.image.merged import MergedTree
from lazyfs.model import ROOT_NODE, NodeId
from tests.support.layer_stacks import images_of, names_in, open_layers, random_stack
from tests.support.overlay_oracle import erofs_overlay

pytestmark = pytest.mark.mount


async def compare(tree: MergedTree, node: NodeId, path: bytes) -> int:
    """Hold an object and all below it against the mounted ``path``; how many there are."""
    shown, attributes = os.lstat(path), await tree.attributes(node)
    assert attributes.mode == shown.st_mode, path
    assert attributes.nlink == shown.st_nlink, path
    assert (attributes.uid, attributes.gid) == (shown.st_uid, shown.st_gid)
    assert attributes.mtime_s * 10**9 + attributes.mtime_ns == shown.st_mtime_ns, path
    assert os.makedev(attributes.rdev_major, attributes.rdev_minor) == shown.st_rdev
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
    assert await tree.xattrs(node) == xattrs, path
    count = 1
    if stat.S_ISREG(shown.st_mode):
        assert await tree.read(node, 0, 1 << 20) == Path(os.fsdecode(path)).read_bytes()
    elif stat.S_ISLNK(shown.st_mode):
        assert await tree.link_target(node) == os.readlink(path)
    elif stat.S_ISDIR(shown.st_mode):
        listed = await names_in(tree, node)
        assert set(listed) == set(os.listdir(path)), path
        for name, (child, _) in listed.items():
            assert await tree.lookup(node, name) == child
            count += await compare(tree, child, path + b"/" + name)
    return count


@pytest.mark.parametrize("seed", range(40))
async def test_a_stack_is_what_the_kernel_shows(seed: int, tmp_path: Path):
    rng = random.Random(seed)
    images = images_of(random_stack(rng, rng.randint(2, 5)))
    files = []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.erofs")
        files[-1].write_bytes(image)
    tree = MergedTree(await open_layers(images))
    with erofs_overlay(files, tmp_path / "mounts") as target:
        assert await compare(tree, ROOT_NODE, os.fsencode(target)) > 1
