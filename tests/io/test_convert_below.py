"""What tars leave open is as lower layers have it: as when layers are unpacked over each other.

The oracle is ``umoci unpack``, and the kernel's EROFS and overlayfs for what was converted.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult, LayerOutcome
from lazyfs.errors import ConversionError
from lazyfs.seekable.mediatypes import Layout
from registry.digest import Digest
from registry.mediatype import OCI_LAYER_TAR
from tests.support import overlay_oracle, trees
from tests.support import tar_samples as tars
from tests.support.memory_store import MemoryStore, put_tar_image

BASE = tars.tar(
    tars.directory(b"./", mode=0o750, uid=1, mtime=1_500_000_000),
    tars.directory(b"tmp", mode=0o1777, gid=5, mtime=1_600_000_000),
    tars.pax({b"SCHILY.xattr.user.x": b"of the directory"}) + tars.directory(b"home", mode=0o700),
    tars.directory(b"home/user", mode=0o700, uid=1000),
    tars.directory(b"usr"),
    tars.directory(b"usr/lib", mode=0o711),
    tars.symlink(b"lib", b"usr/lib"),
    tars.symlink(b"lib64", b"/lib"),
    tars.file(b"usr/lib/libc", b"the C library", mode=0o755, uid=7, mtime=5),
    tars.hard_link(b"usr/lib/libc.6", b"usr/lib/libc"),
    tars.symlink(b"usr/lib/link", b"libc"),
    tars.header(b"null", kind=b"3", mode=0o666, device=(1, 3)),
)
STACKS = {
    "a parent that is not described": [tars.file(b"tmp/a", b"1"), tars.file(b"home/user/b", b"2")],
    "a deletion in such a parent": [tars.file(b"home/.wh.user"), tars.file(b"tmp/x", b"")],
    "an opaque directory": [tars.file(b"home/.wh..wh..opq"), tars.file(b"home/new", b"")],
    "a parent that is a symlink": [tars.file(b"lib/new", b"1"), tars.file(b"lib64/newer", b"2")],
    "both ways to one directory": [tars.file(b"usr/lib/one", b"1"), tars.file(b"lib/two", b"2")],
    "a deletion through a symlink": [tars.file(b"lib/.wh.libc")],
    "links to a file below": [
        tars.hard_link(b"copy", b"usr/lib/libc"),
        tars.hard_link(b"tmp/c", b"usr/lib/libc"),
    ],
    "a link to a link below": [tars.hard_link(b"copy", b"usr/lib/libc.6")],
    "a link to a symlink below": [tars.hard_link(b"copy", b"usr/lib/link")],
    "a link to a device below": [tars.hard_link(b"zero", b"null")],
    "a link through a symlink": [tars.hard_link(b"copy", b"lib/libc")],
    "a link to what this layer has elsewhere": [
        tars.file(b"usr/lib/own", b"o"),
        tars.hard_link(b"copy", b"lib64/own"),
    ],
    "nothing at all": [],
    "entries that replace each other": [
        tars.file(b"twice", b"first"),
        tars.file(b"twice", b"second", mode=0o600),
        tars.file(b"to-directory", b"a file"),
        tars.directory(b"to-directory", mode=0o711),
        tars.file(b"to-directory/inside", b"1"),
        tars.directory(b"to-file"),
        tars.file(b"to-file/lost", b"1"),
        tars.file(b"to-file", b"a file"),
        tars.file(b"there-and-back", b"1"),
        tars.directory(b"there-and-back"),
        tars.file(b"there-and-back", b"2"),
        tars.file(b"linked", b"of two names"),
        tars.hard_link(b"link", b"linked"),
        tars.file(b"linked", b"replaced"),
        tars.symlink(b"was-symlink", b"usr"),
        tars.directory(b"was-symlink", mode=0o700),
    ],
    "entries that replace what is below": [
        tars.file(b"home", b"was a directory"),
        tars.directory(b"null", mode=0o700),
        tars.file(b"null/inside", b"1"),
        tars.file(b"lib", b"was a symbolic link"),
    ],
    "names that lead elsewhere": [
        tars.file(b"/tmp/absolute", b"1"),
        tars.file(b"//usr//.//lib/dots", b"1"),
        tars.symlink(b"up", b"../../../.."),
        tars.file(b"up/confined", b"1"),
        tars.symlink(b"out", b"/nowhere"),
    ],
    "a root of its own": [tars.directory(b"./", mode=0o700), tars.file(b"a", b"1")],
}


def write_layout(folder: Path, layers: list[bytes]) -> None:
    """An OCI layout folder, for umoci and for us."""
    store = MemoryStore()
    top = put_tar_image(store, layers, media_type=OCI_LAYER_TAR, pack=bytes)
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    for digest, raw in store.content.items():
        (blobs / digest.encoded).write_bytes(raw)
    entry = {
        "mediaType": top.media_type,
        "digest": str(top.digest),
        "size": top.size_bytes,
        "annotations": {"org.opencontainers.image.ref.name": "tar"},
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


async def converted(layers: list[bytes], **options: Any) -> tuple[MemoryStore, ConversionResult]:
    source, destination = MemoryStore(), MemoryStore()
    source.top = put_tar_image(source, layers)
    chosen = ConvertOptions(**options)
    return destination, await convert_image(source, destination, chosen, SilentProgress())


def decode(store: MemoryStore, digest: Digest, image: Path) -> Path:
    blob = image.with_suffix(".zst")
    blob.write_bytes(store.content[digest])
    return overlay_oracle.decode(blob, image)


COMPARED = frozenset({"mode", "uid", "gid", "rdev", "xattrs", "target", "content"})


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", STACKS)
async def test_trees_are_as_umoci_unpacks_them(tmp_path, name, layout):
    layers = [BASE, tars.tar(*STACKS[name])]
    write_layout(tmp_path / "layout", layers)
    unpack = ["umoci", "unpack", "--image", tmp_path / "layout:tar", tmp_path / "bundle"]
    subprocess.run(unpack, check=True, capture_output=True)
    store, result = await converted(layers, layout=layout)
    images = [
        decode(store, layer.descriptor.digest, tmp_path / f"{number}.erofs")
        for number, layer in enumerate(result.images[0].layers)
    ]
    wanted = trees.look(tmp_path / "bundle/rootfs")
    with overlay_oracle.erofs_overlay(images, tmp_path / "mounts") as target:
        trees.assert_same(trees.look(target), wanted, COMPARED)


async def test_times_of_such_directories_are_those_below(tmp_path):
    store, result = await converted([BASE, tars.tar(tars.file(b"tmp/a", b"1"))])
    top = result.images[0].layers[1].descriptor.digest
    image = decode(store, top, tmp_path / "top.erofs")
    with overlay_oracle.mount_erofs(image, tmp_path / "mount") as target:
        assert (target / "tmp").stat().st_mtime_ns == 1_600_000_000 * 10**9
        assert target.stat().st_mtime_ns == 1_500_000_000 * 10**9


async def test_layers_between_count():
    between = tars.tar(
        tars.directory(b"tmp", mode=0o755, uid=3), tars.file(b".wh.home"), tars.file(b".wh.null")
    )
    top = tars.tar(tars.file(b"tmp/a", b"1"), tars.file(b"home/b", b"2"))
    _, first = await converted([BASE, between, top])
    _, other = await converted([BASE, top])
    assert first.images[0].layers[2].diff_id != other.images[0].layers[1].diff_id
    for target in (b"null", b"home/user/missing", b"../../etc", b"usr"):
        with pytest.raises(ConversionError, match="hard link to"):
            await converted([BASE, between, tars.tar(tars.hard_link(b"zero", target))])


async def test_a_link_to_what_was_replaced_is_the_replacement(tmp_path):
    between = tars.tar(
        tars.directory(b"usr"), tars.directory(b"usr/lib"), tars.file(b"usr/lib/libc", b"newer")
    )
    top = tars.tar(tars.hard_link(b"copy", b"lib/libc.6"), tars.hard_link(b"other", b"lib/libc"))
    store, result = await converted([BASE, between, top])
    image = decode(store, result.images[0].layers[2].descriptor.digest, tmp_path / "image")
    with overlay_oracle.mount_erofs(image, tmp_path / "mount") as target:
        assert (target / "other").read_bytes() == b"newer"
        assert (target / "copy").read_bytes() in (b"newer", b"the C library")


async def test_symlinks_in_circles_are_refused():
    base = tars.tar(tars.symlink(b"a", b"b"), tars.symlink(b"b", b"a"), tars.symlink(b"c", b"c/d"))
    for name in (b"a/x", b"c/x"):
        with pytest.raises(ConversionError, match="symlink"):
            await converted([base, tars.tar(tars.file(name))])
    with pytest.raises(ConversionError, match="hard link to"):
        await converted([base, tars.tar(tars.hard_link(b"x", b"a/y"))])


async def test_a_layer_at_several_places_is_converted_for_each(tmp_path):
    top = tars.tar(tars.file(b"tmp/a", b"1"))
    whole = tars.tar(tars.directory(b"./"), tars.directory(b"d"), tars.file(b"d/f", b"2"))
    _, result = await converted([top, BASE, top, whole, whole])
    layers = result.images[0].layers
    assert layers[0].descriptor != layers[2].descriptor
    assert layers[3] == layers[4]
    assert {layer.outcome for layer in layers} == {LayerOutcome.CONVERTED}
