"""Images that have little in common, for round trips: each small, or as large as its kind is.

    layers = SAMPLES["a static program"](Path("folder"), full=False)

GNU tar writes the layers from real files. Needs root.
"""

import gzip
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.support import tar_samples
from tests.support.images import (
    CACHE,
    OCI,
    LayerFile,
    debian_layer,
    digest_of,
    make_changes,
    noise,
    pack,
    run,
    write,
)

Make = Callable[[Path, bool], Sequence[LayerFile]]
"""From an empty folder, and whether it should be large, to layers, the lowest first."""

OTHER_RELEASES = ("trixie", "bullseye")
MEBI = 1 << 20


def packed(tar: Path, *, media_type: str = f"{OCI}.layer.v1.tar") -> LayerFile:
    """A tar as a layer that is not compressed."""
    digest = digest_of(tar)
    return LayerFile(tar, digest, tar.stat().st_size, digest, media_type)


def tarred(tree: Path, target: Path, *options: str) -> LayerFile:
    """A layer, not compressed, of a folder."""
    run("tar", "--numeric-owner", "--sort=name", *options, "-C", tree, "-cf", target, ".")
    return packed(target)


def debian(folder: Path, full: bool) -> list[LayerFile]:
    """What debootstrap makes, and a layer of changes of every kind."""
    base = debian_layer(CACHE)
    make_changes(folder / "changes", base)
    return [base, pack(folder / "changes", folder / "changes.tar.gz")]


def other_release(suite: str) -> Make:
    """Another Debian: the newer one with directories that merged, the older one without."""

    def make(folder: Path, full: bool) -> list[LayerFile]:
        run("debootstrap", "--variant=minbase", suite, folder / "tree")
        return [pack(folder / "tree", folder / "layer.tar.gz")]

    return make


def python_environment(folder: Path, full: bool) -> list[LayerFile]:
    """Python's library below, a virtual environment above."""
    library = Path(sysconfig.get_path("stdlib"))
    below = folder / "below" / library.relative_to("/")
    names = [path.name for path in library.iterdir()] if full else ["json", "asyncio", "email"]
    for name in names:
        if (library / name).is_dir():
            shutil.copytree(library / name, below / name, symlinks=True)
    above = folder / "above/venv"
    run(sys.executable, "-m", "venv", "--without-pip", above)
    packages = Path(sysconfig.get_path("purelib"))
    target = next(above.glob("lib/python*/site-packages"))
    for path in packages.iterdir():
        if path.is_dir() and (full or path.name.startswith(("trio", "rich"))):
            shutil.copytree(path, target / path.name, symlinks=True)
    return [pack(folder / name, folder / f"{name}.tar.gz") for name in ("below", "above")]


def static_program(folder: Path, full: bool) -> list[LayerFile]:
    """One file, as Go programs are shipped."""
    source = write(folder / "hello.c", b'#include <stdio.h>\nint main(){puts("hello");}\n')
    (folder / "tree").mkdir()
    run("gcc", "-static", "-Os", source, "-o", folder / "tree/hello")
    return [pack(folder / "tree", folder / "layer.tar.gz")]


def hundred_layers(folder: Path, full: bool) -> list[LayerFile]:
    """Each adds something, replaces something, and often deletes something."""
    layers = []
    for number in range(100):
        tree = folder / str(number)
        write(tree / f"own/{number}", b"%d" % number)
        write(tree / "replaced", b"by %d" % number)
        write(tree / f"deep/{number % 10}/{number % 7}/{number}", noise(number * 100))
        if number % 3 == 2:
            write(tree / f"own/.wh.{number - 1}")
        if number % 25 == 24:
            write(tree / f"deep/{number % 10}/.wh..wh..opq")
        layers.append(pack(tree, folder / f"{number}.tar.gz"))
    return layers


def empty(folder: Path, full: bool) -> list[LayerFile]:
    """A layer without a single entry, between two of which one has only its root."""
    (folder / "root").mkdir(mode=0o711)
    (folder / "empty.tar").write_bytes(tar_samples.END)
    root = tarred(folder / "root", folder / "root.tar")
    return [packed(folder / "empty.tar"), root, packed(folder / "empty.tar")]


def one_large_file(folder: Path, full: bool) -> list[LayerFile]:
    """Bytes that do not compress, from beginning to end."""
    (folder / "tree").mkdir()
    with (folder / "tree/large").open("wb") as file:
        for number in range(96 if full else 1):
            file.write(noise(32 * MEBI, b"%d" % number))
    return [tarred(folder / "tree", folder / "layer.tar")]


def one_sparse_file(folder: Path, full: bool) -> list[LayerFile]:
    """Mostly holes."""
    (folder / "tree").mkdir()
    size = 3072 * MEBI if full else 256 * MEBI
    with (folder / "tree/sparse").open("wb") as file:
        for offset in range(0, size, 16 * MEBI):
            file.seek(offset + 12345)
            file.write(noise(70_000))
        file.truncate(size)
    return [pack(folder / "tree", folder / "layer.tar.gz")]


def many_small_files(folder: Path, full: bool) -> list[LayerFile]:
    """Half of them in one directory."""
    count = 200_000 if full else 4000
    for number in range(count):
        place = "wide" if number % 2 else f"narrow/{number % 100}/{number % 30}"
        path = folder / "tree" / place / f"file-{number}"
        if number < 6000:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * (number % 300))
    return [pack(folder / "tree", folder / "layer.tar.gz")]


def hard_links(folder: Path, full: bool) -> list[LayerFile]:
    """One program under many names, as busybox is, and symbolic links to it."""
    program = write(folder / "tree/bin/busybox", noise(200_000), 0o4755)
    for number in range(2000 if full else 300):
        os.link(program, folder / f"tree/bin/applet-{number}")
        (folder / f"tree/bin/link-{number}").symlink_to("busybox")
    os.link(folder / "tree/bin/link-0", folder / "tree/bin/link-too", follow_symlinks=False)
    write(folder / "above/bin/busybox", b"replaced")
    write(folder / "above/bin/.wh.applet-1")
    return [pack(folder / name, folder / f"{name}.tar.gz") for name in ("tree", "above")]


def zstd_layers(folder: Path, full: bool) -> list[LayerFile]:
    """Layers packed by zstd, in several frames."""
    layers = []
    for number in range(2):
        for name in range(50):
            write(folder / f"{number}/dir/{name}-{number}", noise(name * 1000, b"%d" % number))
        plain = tarred(folder / str(number), folder / f"{number}.tar", "--format=gnu")
        middle = plain.path.stat().st_size // 2
        raw, blob = plain.path.read_bytes(), folder / f"{number}.tar.zst"
        with blob.open("wb") as file:
            for part in (raw[:middle], raw[middle:]):
                file.write(subprocess.run(["zstd", "-c"], input=part, capture_output=True).stdout)
        layers.append(
            replace(packed(blob, media_type=f"{OCI}.layer.v1.tar+zstd"), diff_id=plain.digest)
        )
    return layers


def many_gzip_members(folder: Path, full: bool) -> list[LayerFile]:
    """As parallel compressors write it; in the format of before 1988, nearly."""
    for name in range(80):
        write(folder / f"tree/some/{name}", noise(name * 500))
    plain = tarred(folder / "tree", folder / "plain.tar", "--format=ustar")
    raw, blob = plain.path.read_bytes(), folder / "layer.tar.gz"
    step = 10_007
    members = [gzip.compress(raw[at : at + step], 1) for at in range(0, len(raw), step)]
    blob.write_bytes(b"".join(members))
    gzipped = packed(blob, media_type=f"{OCI}.layer.v1.tar+gzip")
    return [replace(gzipped, diff_id=plain.digest)]


def for_umoci(layer: LayerFile, folder: Path) -> LayerFile:
    """The same layer in a form that umoci knows."""
    if not layer.media_type.endswith("+zstd"):
        return layer
    plain = folder / f"{layer.path.name}.plain"
    run("zstd", "-dq", layer.path, "-o", plain)
    return packed(plain)


SAMPLES: dict[str, Make] = {
    "a Python environment": python_environment,
    "a static program": static_program,
    "a hundred layers": hundred_layers,
    "empty layers": empty,
    "one large file": one_large_file,
    "one sparse file": one_sparse_file,
    "many small files": many_small_files,
    "hard links": hard_links,
    "zstd": zstd_layers,
    "gzip in many members": many_gzip_members,
}
LARGE_SAMPLES: dict[str, Make] = {"Debian, changed": debian} | {
    f"Debian {suite}": other_release(suite) for suite in OTHER_RELEASES
}
"""Besides, where there is time."""
