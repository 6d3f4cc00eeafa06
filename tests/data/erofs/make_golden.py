"""Makes the golden images (see README.md): make_golden.py MKFS_EROFS, as root."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support.erofs_files import DATA, facts_of_tree, make_image, make_tree

LONG_PREFIXES = ("--xattr-prefix=user.shared.", "--xattr-prefix=trusted.overlay.")
IMAGES: dict[str, tuple[str, ...]] = {
    "plain-512": ("-b512",),
    "plain-2k": ("-b2048", "-Eforce-inode-extended"),
    "48bit": ("-E48bit",),
    "48bit-chunks": ("-E48bit", "--chunksize=8192"),
    "48bit-extents": ("-E48bit", "-zzstd", "-C4096"),
    "48bit-extents-sums": ("-E48bit", "-zlz4", "-C65536", "--max-extent-bytes=16384"),
    "48bit-fragments": ("-E48bit", "-zlz4hc", "-C4096", "-Efragments,dedupe"),
    "block-map": ("--chunksize=4096",),
    "chunk-indexes": ("--chunksize=4096", "-Eforce-chunk-indexes"),
    "device": ("--chunksize=4096", "--blobdev={device}"),
    "lz4": ("-zlz4",),
    "lz4-big": ("-zlz4hc", "-C65536"),
    "lz4-full-index": ("-zlz4hc", "-C16384", "-Elegacy-compress"),
    "lzma": ("-zlzma", "-C65536"),
    "deflate": ("-zdeflate,level=9", "-C16384"),
    "zstd": ("-zzstd", "-C16384"),
    "zstd-1k": ("-zzstd", "-b1024", "-C4096"),
    "mixed": ("-zlz4hc:zstd", "-C16384"),
    "tailpacking": ("-zlz4hc", "-Eztailpacking"),
    "fragments": ("-zlz4hc", "-C4096", "-Efragments"),
    "fragments-tailpacking": ("-zlzma", "-C4096", "-Efragments,ztailpacking", "-m4096:zstd"),
    "all-fragments-dedupe": ("-zzstd", "-C65536", "-Eall-fragments,dedupe"),
    "dedupe-lz4": ("-zlz4hc", "-C16384", "-Ededupe"),
    "dedupe-deflate": ("-zdeflate", "-C16384", "-Ededupe"),
    "dedupe-zstd": ("-zzstd", "-C16384", "-Ededupe"),
    "dedupe-lzma": ("-zlzma", "-C16384", "-Ededupe"),
    "directories": ("-zlz4hc", "--zD"),
    "metabox": ("-zzstd", "-m4096:zstd", *LONG_PREFIXES),
    "metabox-chunks": ("-m4096:lz4", "--chunksize=4096", "-E48bit", "-x1"),
    "metadata-zone": ("--MZ",),
    "xattr-prefixes": (*LONG_PREFIXES, "-x1"),
    "xattr-filter": ("-Exattr-name-filter", "-x1"),
}
TAR_IMAGE = "tar-index"
FIXED = ("--quiet", "-T1700000000", "--mkfs-time", "-U00000000-0000-4000-8000-000000000000")


def main() -> None:
    tool = sys.argv[1]
    expected = {}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        make_tree(source)
        for name, options in IMAGES.items():
            device = Path(scratch) / "device"
            device.unlink(missing_ok=True)
            chosen = [option.format(device=device) for option in options]
            image = Path(scratch) / "image"
            image.unlink(missing_ok=True)
            make_image(tool, source, image, *FIXED, *chosen)
            expected[name] = kept(name, image, device if device.exists() else None)
        tar = Path(scratch) / "tree.tar"
        members = [name for name in os.listdir(source) if name != "odd"]
        subprocess.run(
            ["tar", "--xattrs", "--format=pax", "--sort=name", "-cf", tar, "-C", source, *members],
            check=True,
        )
        image = Path(scratch) / "tar-image"
        make_image(tool, tar, image, *FIXED, "--tar=i")
        expected[TAR_IMAGE] = kept(TAR_IMAGE, image, tar)
    text = json.dumps(expected, sort_keys=True).encode()
    (DATA / "expected.json.zst").write_bytes(packed(text))


def kept(name: str, image: Path, device: Path | None) -> dict[str, dict[str, object]]:
    """Keep an image, and return what the kernel shows of it."""
    (DATA / f"{name}.erofs.zst").write_bytes(packed(image.read_bytes()))
    option = "ro,loop"
    loop = ""
    if device:
        (DATA / f"{name}.device.zst").write_bytes(packed(device.read_bytes()))
        command: list[str | Path] = ["losetup", "--read-only", "--find", "--show", device]
        loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        option += f",device={loop}"
    with tempfile.TemporaryDirectory() as mountpoint:
        subprocess.run(["mount", "-terofs", "-o", option, image, mountpoint], check=True)
        try:
            return facts_of_tree(Path(mountpoint))
        finally:
            subprocess.run(["umount", mountpoint], check=True)
            if loop:
                subprocess.run(["losetup", "--detach", loop], check=True)


def packed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(data)


if __name__ == "__main__":
    main()
