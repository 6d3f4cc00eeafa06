"""The image that the end-to-end tests and the benchmarks use: three tar layers, really Debian.

    layout = three_layers(Path("build/test-images"))   # an OCI layout folder, tag "tar"

1. what ``debootstrap`` makes of Debian's minimal variant with Python and numpy;
2. deletions, replacements of every kind, opaque directories, changed modes;
3. odd names, extended attributes, hard links, device nodes, sparse files, many small files;
   and changes to what the second layer changed.

GNU tar writes the layers, from real files: the first is kept in the cache folder, since it
takes a minute; the others are made anew. Needs root, and a file system with extended attributes.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build/test-images"
TAG = "tar"

PACKAGES = ("python3", "python3-numpy")
COMMAND_WITHIN_S = 900
PIECE_BYTES = 1 << 20
OCI = "application/vnd.oci.image"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""``security.capability`` of ``cap_net_raw+ep``."""


@dataclass(frozen=True)
class LayerFile:
    """A layer's blob and what a manifest and a configuration say of it."""

    path: Path
    digest: str
    size: int
    diff_id: str
    media_type: str = f"{OCI}.layer.v1.tar+gzip"
    annotations: Mapping[str, str] = field(default_factory=dict)


def three_layers(cache: Path = CACHE, target: Path | None = None) -> Path:
    """The OCI layout folder of the image; made anew, but for the Debian layer.

    Args:
        cache: where the Debian layer is kept.
        target: the folder to make or replace; one in ``cache`` if nobody else uses that.
    """
    target = target or cache / "three-layers"
    base = debian_layer(cache)
    folder = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
    try:
        changes, odd = folder / "changes", folder / "odd"
        make_changes(changes, base)
        make_odd_things(odd)
        upper = [pack(tree, folder / f"{tree.name}.tar.gz") for tree in (changes, odd)]
        write_layout(folder / "layout", [base, *upper])
        shutil.rmtree(target, ignore_errors=True)
        (folder / "layout").rename(target)
    finally:
        shutil.rmtree(folder)
    return target


def debian_layer(cache: Path = CACHE) -> LayerFile:
    """Debian with numpy, of this machine's release and from where its own packages come."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    kept = cache / f"debian-{suite}"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="debian-", dir=cache))
        try:
            include = f"--include={','.join(PACKAGES)}"
            run("debootstrap", "--variant=minbase", include, suite, folder / "tree")
            layer = pack(folder / "tree", folder / "layer.tar.gz")
            shutil.rmtree(folder / "tree")
            facts = {"digest": layer.digest, "size": layer.size, "diff_id": layer.diff_id}
            (folder / "layer.json").write_text(json.dumps(facts))
            folder.rename(kept)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    facts = json.loads((kept / "layer.json").read_text())
    return LayerFile(kept / "layer.tar.gz", **facts)


def run(*command: str | Path) -> None:
    """Run a command to its end; its output is shown if it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=COMMAND_WITHIN_S,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}"


def pack(tree: Path, target: Path) -> LayerFile:
    """A layer of everything in a folder, by GNU tar with all that it can tell."""
    tar_options = ("--format=pax", "--sort=name", "--numeric-owner", "--sparse")
    xattr_options = ("--acls", "--xattrs", "--xattrs-include=*")
    command = ("tar", *tar_options, *xattr_options, "-C", tree, "-c", ".")
    plain = hashlib.sha256()
    with (
        target.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed,
        subprocess.Popen(command, stdout=subprocess.PIPE) as tar,
    ):
        assert tar.stdout is not None
        while piece := tar.stdout.read(PIECE_BYTES):
            plain.update(piece)
            packed.write(piece)
    assert tar.returncode == 0
    return LayerFile(
        target, digest_of(target), target.stat().st_size, f"sha256:{plain.hexdigest()}"
    )


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, as documents have it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def write_layout(folder: Path, layers: Sequence[LayerFile], tag: str = TAG) -> None:
    """An OCI layout folder with one image; linked where that is possible."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(document: object, kind: str) -> dict[str, object]:
        data = json.dumps(document).encode()
        encoded = hashlib.sha256(data).hexdigest()
        (blobs / encoded).write_bytes(data)
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{encoded}", "size": len(data)}

    for layer in layers:
        target = blobs / layer.digest.removeprefix("sha256:")
        if target.exists():
            continue
        try:
            os.link(layer.path, target)
        except OSError:  # another file system
            shutil.copyfile(layer.path, target)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["python3"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": put(config, "config.v1+json"),
        "layers": [
            {
                "mediaType": layer.media_type,
                "digest": layer.digest,
                "size": layer.size,
                "annotations": dict(layer.annotations),
            }
            for layer in layers
        ],
    }
    entry = put(manifest, "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def noise(size: int, seed: bytes = b"lazyfs") -> bytes:
    """Bytes that do not compress, the same ones every time."""
    return hashlib.shake_256(seed).digest(size)


def write(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    """A file, with the directories that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


# What the second layer does to Debian. The tests check that the first layer has these, so that
# a new release of Debian cannot quietly make the image an easy one.
DELETED_FILES = ("etc/debian_version", "usr/share/doc/bash/copyright")
DELETED_DIRECTORIES = ("usr/share/zoneinfo/Africa", "usr/share/doc/base-files")
FILE_TO_DIRECTORY = "etc/issue"
DIRECTORY_TO_FILE = "usr/share/common-licenses"
DIRECTORY_TO_SYMLINK = "usr/share/lintian"
SYMLINK_TO_DIRECTORY = "var/run"
SYMLINK_TO_FILE = "etc/os-release"
OPAQUE = "usr/share/locale"
OPAQUE_INSIDE = "usr/share/locale/de"
"""A directory of Debian that an opaque directory brings back, without what was in it."""
NEW_MODE_FILES = {"etc/debconf.conf": 0o600, "usr/bin/tac": 0o4711}
NEW_MODE_DIRECTORY = "usr/share/doc"


def whiteout(tree: Path, path: str) -> None:
    """Say that lower layers' ``path`` is gone."""
    folder, name = os.path.split(path)
    write(tree / folder / f".wh.{name}")


def make_changes(tree: Path, base: LayerFile) -> None:
    """The second layer's tree."""
    tree.mkdir()
    names = [f"./{name}" for name in NEW_MODE_FILES]
    run("tar", "-C", tree, "-xzpf", base.path, "--numeric-owner", *names)
    for name, mode in NEW_MODE_FILES.items():
        (tree / name).chmod(mode)
    for path in (*DELETED_FILES, *DELETED_DIRECTORIES, "usr/never-was-there"):
        whiteout(tree, path)
    write(tree / FILE_TO_DIRECTORY / "part/one", b"a directory now\n")
    write(tree / DIRECTORY_TO_FILE, b"a file now\n")
    (tree / DIRECTORY_TO_SYMLINK).symlink_to("doc/../doc")
    write(tree / SYMLINK_TO_DIRECTORY / "pid", b"1\n")
    write(tree / SYMLINK_TO_FILE, b"ID=changed\n")
    write(tree / OPAQUE / ".wh..wh..opq")
    write(tree / OPAQUE / "only-this", b"nothing else is left\n")
    write(tree / OPAQUE_INSIDE / "new", b"and nothing of the old\n")
    write(tree / "second/deleted-by-third", b"x")
    write(tree / "second/kept", b"kept by the third")
    write(tree / "second/opaque-in-third/old", b"x")
    write(tree / "second/same/name", b"second")
    os.link(tree / "second/kept", tree / "second/kept-too")
    (tree / NEW_MODE_DIRECTORY).chmod(0o2711)
    os.chown(tree / NEW_MODE_DIRECTORY, 12, 34)
    os.utime(tree / NEW_MODE_DIRECTORY, ns=(0, 1_234_567_890_987_654_321))


def make_odd_things(tree: Path) -> None:
    """The third layer's tree."""
    odd = tree / "odd"
    odd.mkdir(parents=True)
    make_names(odd / "names")
    make_inodes(odd / "inodes")
    make_contents(odd / "contents")
    make_xattrs(odd / "xattrs")
    for number in range(3000):
        write(odd / "many" / f"{number:x}-{'n' * (number % 40)}", b"%d" % number)
    deep = odd.joinpath("deep", *(str(number) for number in range(60)))
    write(deep / "bottom", b"deep")

    whiteout(tree, "second/deleted-by-third")
    write(tree / "second/opaque-in-third/.wh..wh..opq")
    write(tree / "second/opaque-in-third/new", b"new")
    write(tree / "second/same/name", b"third")
    # What the second layer deleted comes back, and must not bring its old self with it.
    write(tree / DELETED_DIRECTORIES[0] / "Reborn", b"not the old one")
    write(tree / OPAQUE / "third", b"merged with an opaque directory")
    write(tree / "usr/share/info/.wh.dir", b"")


def make_names(folder: Path) -> None:
    names = [
        b"\xff\xfe not UTF-8",
        b"two\nlines",
        b"tab\tquote\"back\\slash'",
        b"-rf",
        b"--help",
        b" ",
        b"*",
        b"...",
        b".whale",
        b"x" * 255,
        "ü".encode() * 127,
        "cafe\u0301".encode(),
        "caf\u00e9".encode(),
        "\U0001f433".encode(),
        bytes(range(1, 47)) + bytes(range(48, 128)),
    ]
    folder.mkdir()
    for name in names:
        file = os.path.join(os.fsencode(folder), name)
        Path(os.fsdecode(file)).write_bytes(name)
        os.symlink(name, file[:-1] if len(name) == 255 else file + b"@")
    os.mkdir(os.path.join(os.fsencode(folder), b"dir\xff\n"))
    write(folder / "dir\udcff\n" / "inside", b"x")


def make_inodes(folder: Path) -> None:
    """Types, owners, modes, times, links."""
    folder.mkdir()
    devices = {
        "null": (0o020666, 1, 3),
        "disk": (0o060640, 8, 17),
        "large-numbers": (0o020600, 4095, 1048575),
        "minor-above-8-bits": (0o060600, 259, 70000),
    }
    for name, (mode, major, minor) in devices.items():
        os.mknod(folder / name, mode, os.makedev(major, minor))
    os.mkfifo(folder / "fifo", 0o620)
    for number, mode in enumerate((0o4755, 0o2755, 0o6711, 0o1644, 0o000, 0o7777)):
        write(folder / f"mode-{mode:o}", b"%d" % number, mode)
    for name, mode in (("sticky", 0o1777), ("setgid", 0o2775), ("closed", 0)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    for owner in (1, 65534, 65536, 2_097_152, 4_294_967_294):
        os.chown(write(folder / f"owner-{owner}"), owner, owner - 1)
    times_ns = {
        "ns": 1_600_000_000_123_456_789,
        "last-ns": 1_599_999_999_999_999_999,
        "epoch": 0,
        "before-1970": -1_000_000_000_000_000_000,
        "just-before-1970": -1,
        "after-2038": 5_000_000_000_000_000_001,
    }
    for name, time_ns in times_ns.items():
        os.utime(write(folder / f"time-{name}"), ns=(time_ns, time_ns))
    first = write(folder / "links/first", b"three names")
    os.setxattr(first, "user.shared", b"by all names")
    os.link(first, folder / "links/second")
    (folder / "links/elsewhere").mkdir()
    os.link(first, folder / "links/elsewhere/third")
    os.symlink("first", folder / "links/symlink")
    os.link(folder / "links/symlink", folder / "links/symlink-too", follow_symlinks=False)
    os.link(folder / "null", folder / "links/null-too")
    for name, target in (("long", "t" * 4095), ("absolute", "/etc/hosts"), ("up", "../../..")):
        os.symlink(target, folder / f"to-{name}")


def make_contents(folder: Path) -> None:
    """Sizes around every boundary, and holes."""
    pattern = noise(12 << 20)
    for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, (4 << 20) - 1, 4 << 20, (4 << 20) + 1):
        write(folder / f"size-{size}", pattern[-size:] if size else b"")
    write(folder / "large", pattern)
    write(folder / "zeros", bytes(3 << 20))
    holes: dict[str, tuple[list[tuple[int, bytes]], int]] = {
        "hole-only": ([], 5_000_001),
        "hole-first": ([(32 << 20, b"at the end")], (32 << 20) + 10),
        "hole-last": ([(0, b"at the start")], 9 << 20),
        "holes-between": (
            [(number * 100_000, b"%d" % number * 5000) for number in range(50)],
            6_000_000,
        ),
    }
    for name, (parts, size) in holes.items():
        with (folder / name).open("wb") as file:
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
            file.truncate(size)


def make_xattrs(folder: Path) -> None:
    folder.mkdir()
    odd_values = {
        "user.plain": b"value",
        "user.empty": b"",
        "user.binary": bytes(range(256)),
        "user.newline=equals\n": b"a=b\nc\0d",
        "trusted.secret": b"for root's eyes",
        "security.capability": CAPABILITY,
    }
    for name, value in odd_values.items():
        os.setxattr(write(folder / f"with-{name.split('.')[0]}-{len(value)}"), name, value)
        os.setxattr(write(folder / "all"), name, value)
    os.setxattr(write(folder / "big"), "user.big", b"v" * 3500)
    for number in range(60):
        os.setxattr(write(folder / "lots"), f"user.number-{number}", b"%d" % number)
        os.setxattr(write(folder / f"shared/{number}"), "user.shared", b"the same for all" * 8)
    os.symlink("nowhere", folder / "symlink")
    os.setxattr(folder / "symlink", "trusted.on-a-link", b"yes", follow_symlinks=False)
    os.mknod(folder / "device", 0o020600, os.makedev(1, 5))
    os.setxattr(folder / "device", "trusted.on-a-device", b"yes")
    write(folder / "acl", b"x", 0o640)
    (folder / "default-acl").mkdir()
    os.setxattr(folder / "default-acl", "user.besides", b"an ACL")
    run("setfacl", "-m", "u:1000:rw,g:70000:r", folder / "acl")
    run("setfacl", "-m", "u:1000:rx,d:u:1001:rwx,d:g::-", folder / "default-acl")


if __name__ == "__main__":
    print(three_layers())  # noqa: T201 - for use by hand
