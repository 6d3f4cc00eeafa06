"""Images that are large in one way and take little to make: many layers and files, or a huge file.

Needs mkfs.erofs.
"""

import hashlib
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lazyfs.erofs.inode import inode_address
from lazyfs.seekable.frames import compress_chunk
from lazyfs.seekable.layout import ContainerdLayout, VerityTree
from lazyfs.seekable.mediatypes import ZSTD_LAYER
from lazyfs.verity.build import HashTreeWriter
from tests.support import tar_samples
from tests.support.erofs_files import ImageFiles, make_image, packaged_mkfs, sealed
from tests.support.images import LayerFile, digest_of, write_layout
from tests.support.sample_images import packed

BLOCK = 4096
CHUNK = 4 << 20
MADE_UP = "sha256:" + "0" * 64

SHARED_EVERY = 10
"""One folder of so many is in all layers, and there the files of all of them come together."""
FILES_IN_FOLDER = 100

SUPERBLOCK = 1024
BLOCKS_AT = SUPERBLOCK + 36
SIZE_AT, START_AT = 8, 16
# struct erofs_super_block, struct erofs_inode_extended (fs/erofs/erofs_fs.h)


def many_layers(folder: Path, layers: int, files: int) -> Path:
    """An OCI layout with so many tar layers, of so many files each; every file tells its name."""
    folder.mkdir()
    made: list[LayerFile] = []
    for layer in range(layers):
        tar = folder / f"{layer}.tar"
        with tar.open("wb") as file:
            file.writelines(_members(layer, files))
            file.write(tar_samples.END)
        made.append(packed(tar))
    write_layout(folder / "layout", made)
    for one in made:
        one.path.unlink()
    return folder / "layout"


def path_of(layer: int, number: int) -> str:
    """Where a file of ``many_layers`` is."""
    place = number // FILES_IN_FOLDER
    own = f"own{layer:03}" if place % SHARED_EVERY else "shared"
    return f"{own}/{place:03}/file-{layer:03}-{number:05}"


def _members(layer: int, files: int) -> Iterator[bytes]:
    seen: set[str] = set()
    for number in range(files):
        path = path_of(layer, number)
        top, folder, _ = path.split("/")
        for directory in (top, f"{top}/{folder}"):
            if directory not in seen:
                seen.add(directory)
                yield tar_samples.directory(directory.encode())
        yield tar_samples.file(path.encode(), f"{path}\n".encode())


class HugeImage(NamedTuple):
    """An EROFS image that is never written out: its front, and then zeros but for marks."""

    front: bytes
    """Superblock and metadata, whole blocks."""
    size_bytes: int
    mark_every: int
    """Bytes of the file ``huge`` from one mark to the next, a multiple of ``CHUNK``."""

    @property
    def file_size(self) -> int:
        """Of the file ``huge``, in bytes."""
        return self.size_bytes - len(self.front)

    def chunk(self, number: int) -> tuple[bytes, bytes | None]:
        """What a chunk begins with, and the mark that follows; the rest is zeros."""
        before = self.front if number == 0 else bytes(len(self.front))
        marked = number * CHUNK % self.mark_every == 0 and number * CHUNK < self.file_size
        return before, mark_at(number * CHUNK) if marked else None


def huge_image(folder: Path, file_size: int, mark_every: int) -> HugeImage:
    """An EROFS image with one file, whose data are blocks of the image like any others, no hole."""
    tree, small = folder / "tree", folder / "small.erofs"
    tree.mkdir()
    (tree / "huge").write_bytes(bytes(2 * BLOCK))
    make_image(packaged_mkfs(), tree, small, "-Eforce-inode-extended")
    front = bytearray(small.read_bytes())
    files = ImageFiles([bytes(front)])
    root = files.run(files.image.inode(files.image.root_nid))
    at = inode_address(files.image.superblock, files.run(files.image.lookup(root, b"huge")).nid)
    first = -(-len(front) // BLOCK)
    struct.pack_into("<Q", front, at + SIZE_AT, file_size)
    struct.pack_into("<I", front, at + START_AT, first)
    struct.pack_into("<I", front, BLOCKS_AT, first + file_size // BLOCK)
    return HugeImage(
        sealed(front).ljust(first * BLOCK, b"\0"), first * BLOCK + file_size, mark_every
    )


def mark_at(offset: int) -> bytes:
    """What the huge file has where there is a mark."""
    return b"%015d\n" % offset


def huge_layer(image: HugeImage, blob: Path, *, verity: bool) -> LayerFile:
    """The image as a layer in containerd's layout, by the program's own writers.

    The diff ID is a made-up one: it would take reading all of the zeros, and is of no use here.
    """
    layout = ContainerdLayout(CHUNK)
    zeros, zero_block = bytes(CHUNK), hashlib.sha512(bytes(BLOCK)).digest()
    known: dict[bytes, tuple[bytes, bytes]] = {}
    tree_file = blob.with_suffix(".tree")
    with blob.open("wb") as out, tree_file.open("w+b") as tree_out:

        def write(offset: int, data: bytes) -> None:
            tree_out.seek(offset)
            tree_out.write(data)

        writer = HashTreeWriter(image.size_bytes, write)
        for number in range(-(-image.size_bytes // CHUNK)):
            before, mark = image.chunk(number)
            begin = before + (mark or b"")
            begin += bytes(-len(begin) % BLOCK)
            length = min(CHUNK, image.size_bytes - number * CHUNK)
            if (key := begin[:length] + bytes([length == CHUNK])) not in known:
                frame = compress_chunk((begin + zeros)[:length], 1)
                known[key] = (frame, hashlib.sha512(frame).digest())
            frame, digest = known[key]
            layout.add_frame(length, len(frame), digest)
            out.write(frame)
            if verity:
                digests = writer.hash_blocks(begin[:length])
                writer.add_digests(
                    digests + zero_block * (-(-length // BLOCK) - len(digests) // 64)
                )
        tree = None
        if verity:
            root, _ = writer.finish()
            tree = VerityTree(writer.payload_size_bytes, root, BLOCK)
        tail = layout.finish("", tree)
        out.writelines(tail.pieces)
        tree_out.seek(0)
        shutil.copyfileobj(tree_out, out, CHUNK)
    tree_file.unlink()
    size = blob.stat().st_size
    return LayerFile(blob, digest_of(blob), size, MADE_UP, ZSTD_LAYER, tail.annotations)
