"""The images of the matrix: made once, kept in ``build/benchmarks``, pushed to a registry there.

Each is one layer: Debian's minimal variant with packages from where this machine's own come, or
generated files. numpy's is the image of the other benchmarks, with three layers.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.images import KEPT
from benchmarks.system import run
from lazyfs.convert.options import DEFAULT_CHUNK_BYTES
from tests.support.images import TAG, LayerFile, pack, three_layers, write_layout

MADE = KEPT / "made"
"""Layers, and trees that several begin with."""
OCI_LAYOUT = "oci-layout"
FILES = 100_000
FILES_IN_A_FOLDER = 50
SUITE_KEY = "VERSION_CODENAME"
INSTALL = (
    "mount -t proc proc {tree}/proc && cp /etc/resolv.conf {tree}/etc/ && "
    "export DEBIAN_FRONTEND=noninteractive && chroot {tree} apt-get update -qq && "
    "chroot {tree} apt-get install -y -qq --no-install-recommends {packages}"
)
LEFT_OVERS = (
    "etc/resolv.conf",
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/cache/ldconfig/aux-cache",
    "var/log",
)
"""Of an installation: large, or different each time."""

PACKAGES = {
    "python": ("python3-scipy", "python3-pandas", "python3-matplotlib", "python3-requests"),
    "node": ("nodejs",),
    "java": ("default-jre-headless",),
}


@dataclass(frozen=True)
class MatrixImage:
    """An image in a registry, in both forms."""

    name: str
    tar: str
    """Its name below the registry's host, as skopeo pushed it."""
    seekable: str
    """The same as lazyfs converted it."""
    tar_bytes: int
    """Of the compressed tar layers: what a full pull fetches."""
    seekable_bytes: int


def _tree_of_packages(packages: tuple[str, ...]) -> Callable[[Path], None]:
    def make(tree: Path) -> None:
        run("cp", "-a", "--reflink=auto", _base(), tree)
        words = INSTALL.format(tree=shlex.quote(os.fspath(tree)), packages=" ".join(packages))
        run("unshare", "--mount", "sh", "-ec", words)
        for name in LEFT_OVERS:
            path = tree / name
            if path.is_dir():
                shutil.rmtree(path)
                path.mkdir()
            else:
                path.unlink(missing_ok=True)

    return make


def _base() -> Path:
    """Debian's minimal variant, of this machine's release."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    suite = release[SUITE_KEY].strip('"')
    kept = MADE / f"base-{suite}"
    if not kept.exists():
        with _making() as folder:
            run("debootstrap", "--variant=minbase", suite, folder / "tree")
            (folder / "tree").rename(kept)
    return kept


def _many_files(tree: Path, count: int = FILES) -> None:
    """Sources, as they are: a few kilobytes of text each, many folders."""
    for number in range(count):
        folder = tree / "src" / f"package-{number // (FILES_IN_A_FOLDER * 20)}"
        folder /= f"module-{number // FILES_IN_A_FOLDER % 20}"
        if number % FILES_IN_A_FOLDER == 0:
            folder.mkdir(parents=True)
        noise = hashlib.shake_128(b"%d" % number).hexdigest(200 + number % 17 * 60)
        lines = [
            f"value_{number}_{at} = 0x{noise[at : at + 16]}" for at in range(0, len(noise), 16)
        ]
        (folder / f"file_{number}.py").write_text("\n".join(lines))


MAKERS: dict[str, Callable[[Path], None]] = {
    **{name: _tree_of_packages(packages) for name, packages in PACKAGES.items()},
    "files": _many_files,
}
NAMES = ("numpy", *MAKERS)
_CHUNK_BYTES = "chunk_bytes"
"""Noted of a made image beside what ``MatrixImage`` says."""


@contextlib.contextmanager
def _making() -> Iterator[Path]:
    """A folder beside what is kept, which is gone at the end."""
    MADE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="making-", dir=MADE))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def layer_of(name: str) -> LayerFile:
    """The layer of an image that has one; made if it is not there yet."""
    kept = MADE / name
    if not kept.exists():
        with _making() as folder:
            tree = folder / "tree"
            MAKERS[name](tree)
            (folder / "kept").mkdir()
            made = pack(tree, folder / "kept/layer.tar.gz")
            facts = {"digest": made.digest, "size": made.size, "diff_id": made.diff_id}
            (folder / "kept/layer.json").write_text(json.dumps(facts))
            (folder / "kept").rename(kept)
    facts = json.loads((kept / "layer.json").read_text())
    return LayerFile(kept / "layer.tar.gz", **facts)


def matrix_image(name: str, registry: str, storage: Path) -> MatrixImage:
    """Make an image and push it, in both forms, unless that is done as it would be done now.

    Args:
        name: one of ``NAMES``.
        registry: host and port.
        storage: the registry's folder, which keeps images from run to run.

    Raises:
        BenchmarkError: a program failed.
    """
    note = storage / f"matrix-{name}.json"
    if not _is_made(note):
        for of_another in storage.glob(f"matrix-{name}-*.json"):  # its profile
            of_another.unlink()
        image = MatrixImage(name, f"{name}:tar", f"{name}:seekable", 0, 0)
        with _making() as folder:
            if name == "numpy":
                layout = three_layers(target=folder / OCI_LAYOUT)
            else:
                layout = folder / OCI_LAYOUT
                write_layout(layout, [layer_of(name)])
            tar, seekable = f"{registry}/{image.tar}", f"{registry}/{image.seekable}"
            options = ("--quiet", "--dest-tls-verify=false")
            run("skopeo", "copy", *options, f"oci:{layout}:{TAG}", f"docker://{tar}")
        run(sys.executable, "-m", "lazyfs", "convert", "--quiet", tar, seekable)
        image = MatrixImage(name, image.tar, image.seekable, _pulled(tar), _pulled(seekable))
        note.write_text(json.dumps({**asdict(image), _CHUNK_BYTES: DEFAULT_CHUNK_BYTES}))
    kept = json.loads(note.read_text())
    del kept[_CHUNK_BYTES]
    return MatrixImage(**kept)


def _is_made(note: Path) -> bool:
    """Whether an image is there, in the chunks that conversions make by default."""
    if not note.exists():
        return False
    chunk_bytes: int | None = json.loads(note.read_text()).get(_CHUNK_BYTES)
    return chunk_bytes == DEFAULT_CHUNK_BYTES


def _pulled(image: str) -> int:
    """Bytes of the layers of an image."""
    manifest = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image}")
    return sum(int(layer["size"]) for layer in json.loads(manifest)["layers"])
