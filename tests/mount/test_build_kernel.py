"""Built images as the kernel, ``fsck.erofs`` and GNU tar see them."""

import os
import shutil
import stat
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from lazyfs.erofs.build.front import HotRange
from tests.support import tar_samples as tars
from tests.support.built import built

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="erofs-utils is not installed"),
]


class Seen(NamedTuple):
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    nlink: int
    rdev: int
    content: bytes
    xattrs: dict[str, bytes]


def look(root: Path) -> dict[bytes, Seen]:
    """Everything below ``root``, and for each inode the first of its names."""
    seen: dict[bytes, Seen] = {}
    for folder, directories, files in os.walk(os.fsencode(root)):
        for name in [b"", *directories, *files]:
            path = os.path.join(folder, name) if name else folder
            relative = os.path.relpath(path, os.fsencode(root))
            if relative in seen:
                continue
            status = os.lstat(path)
            content, size = b"", 0
            if stat.S_ISREG(status.st_mode):
                content, size = Path(os.fsdecode(path)).read_bytes(), status.st_size
            elif stat.S_ISLNK(status.st_mode):
                content, size = os.readlink(path), status.st_size
            seen[relative] = Seen(
                status.st_mode,
                (status.st_uid, status.st_gid),
                status.st_mtime_ns,
                size,
                status.st_nlink,
                status.st_rdev,
                content,
                {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
            )
    return seen


def groups(root: Path) -> set[frozenset[bytes]]:
    """Which names are the same inode."""
    found: dict[int, set[bytes]] = {}
    for folder, _, files in os.walk(os.fsencode(root)):
        for name in files:
            path = os.path.join(folder, name)
            found.setdefault(os.lstat(path).st_ino, set()).add(
                os.path.relpath(path, os.fsencode(root))
            )
    return {frozenset(names) for names in found.values() if len(names) > 1}


@contextmanager
def mounted(image: Path, target: Path, *options: str) -> Iterator[Path]:
    target.mkdir()
    subprocess.run(
        ["mount", "-t", "erofs", "-o", ",".join(("ro", "loop", *options)), image, target],
        check=True,
    )
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def write_image(tar: bytes, path: Path, hot: Sequence[HotRange] = ()) -> Path:
    path.write_bytes(built(tar, hot))
    checked = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "<E>" not in checked.stdout + checked.stderr
    assert "<W>" not in checked.stdout + checked.stderr
    return path


def unpack(tar: bytes, folder: Path) -> Path:
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    archive.write_bytes(tar)
    subprocess.run(
        ["tar", "-x", "-p", "-f", archive, "-C", folder, "--numeric-owner", "--same-owner",
         "--xattrs", "--xattrs-include=*", "--warning=no-timestamp"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def assert_same_tree(got: Path, wanted: Path) -> None:
    left, right = look(got), look(wanted)
    assert sorted(left) == sorted(right)
    for path, seen in left.items():
        assert seen == right[path], path
    assert groups(got) == groups(wanted)


def describe(path: Path) -> None:
    """Give a directory what an image has where the tar says nothing."""
    os.chmod(path, 0o755)
    os.utime(path, ns=(0, 0))


def test_every_kind_of_entry_is_as_tar_unpacks_it(tmp_path):
    tar = tars.odd_layer()
    image = write_image(tar, tmp_path / "image.erofs")
    wanted = unpack(tar, tmp_path / "wanted")
    # GNU tar leaves ACLs in xattr records alone, and the time of parents it makes is now.
    os.setxattr(wanted / "acl", "system.posix_acl_access", tars.ACL)
    deep = tars.LONG_NAME.decode().rsplit("/", 1)[0]
    for path in ("deep", deep, "pax", "pax/deep", f"pax/{deep}", "a", "a/prefix", "many", "wide"):
        describe(wanted / path)
    # It also touches directories by entries that come long after theirs.
    os.utime(wanted / "absolute", ns=(0, 0))
    os.utime(wanted / "etc", ns=(0, 1_600_000_000 * 10**9))
    with mounted(image, tmp_path / "mounted") as got:
        assert_same_tree(got, wanted)
        with (got / "sparse").open("rb") as sparse:
            assert os.lseek(sparse.fileno(), 0, os.SEEK_DATA) <= 4096
        assert (got / "sparse").stat().st_size == 10_000_000
    assert image.stat().st_size < 5_000_000


def test_a_real_tree(tmp_path):
    tar = subprocess.run(
        ["tar", "-c", "--format=pax", "-C", "/", sysconfig.get_path("stdlib").lstrip("/")],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    image = write_image(tar, tmp_path / "image.erofs")
    wanted = unpack(tar, tmp_path / "wanted")
    for path in ("usr/lib", "usr", "."):
        describe(wanted / path)
    with mounted(image, tmp_path / "mounted") as got:
        assert_same_tree(got, wanted)
        assert len(look(got)) > 500


def test_a_real_tree_with_parts_of_files_in_front(tmp_path):
    """Every third file has something hot: nearly all of it, or a few ranges."""
    large = b"".join(b"%d" % number * 1000 for number in range(1000))
    head = tars.directory(b"./") + tars.file(b"large", large)
    tar = head + tars.real_tree(sysconfig.get_path("stdlib") + "/email")
    wanted = unpack(tar, tmp_path / "wanted")
    hot = [HotRange(b"large", offset, 5000) for offset in (2_000_000, 0, 777_777)]
    for number, path in enumerate(sorted(wanted.rglob("*"))):
        if number % 3 == 0 and path.is_file():
            hot.append(HotRange(os.fsencode(path.relative_to(wanted)), number * 97, 1 << 20))
    image = write_image(tar, tmp_path / "image", hot)
    assert image.read_bytes() != built(tar)
    with mounted(image, tmp_path / "mounted") as got:
        assert_same_tree(got, wanted)


def test_ten_thousand_small_files(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    os.utime(source, ns=(0, 0))
    for number in range(10_000):
        folder = source / f"{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"file-{number}").write_bytes(b"%d" % number * (number % 50))
    tar = subprocess.run(
        ["tar", "-c", "--format=pax", "-C", source, "."], check=True, capture_output=True
    ).stdout
    image = write_image(tar, tmp_path / "image.erofs")
    with mounted(image, tmp_path / "mounted") as got:
        assert_same_tree(got, source)


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse", "--sparse-version=0.0"],
        ["--format=pax", "--sparse", "--sparse-version=0.1"],
        ["--format=pax", "--sparse", "--sparse-version=1.0"],
        ["--format=gnu"],
        ["--format=pax"],
        ["--format=ustar"],
    ],
    ids=" ".join,
)
def test_sparse_files_in_every_format_of_gnu_tar(tmp_path, options):
    source = tmp_path / "source"
    source.mkdir()
    os.utime(source)
    with (source / "fragments").open("wb") as file:
        for offset in range(0, 4 << 20, 64 << 10):
            file.seek(offset)
            file.write(b"%06d" % offset * 700)
        file.truncate(5_000_001)
    with (source / "hole").open("wb") as file:
        file.truncate(1 << 20)
    (source / "full").write_bytes(b"full" * 5000)
    for path in (*source.iterdir(), source):
        os.utime(path, ns=(0, 1_700_000_000 * 10**9))
    tar = subprocess.run(
        ["tar", "-c", *options, "-C", source, "."], check=True, capture_output=True
    ).stdout
    image = write_image(tar, tmp_path / "image.erofs")
    with mounted(image, tmp_path / "mounted") as got:
        assert_same_tree(got, source)
    if "--sparse" in options:
        assert image.stat().st_size < 2_000_000


def test_extremes_of_times_and_sizes(tmp_path):
    tar = tars.tar(
        tars.pax({b"mtime": b"-62135596800.000000001"}) + tars.file(b"year-one"),
        tars.pax({b"mtime": b"253402300799.999999999"}) + tars.file(b"year-9999"),
        tars.sparse_1_0(b"terabyte", 1 << 40, [((1 << 40) - 10, b"the end...")]),
        *(
            tars.pax({b"SCHILY.xattr.user.n%d" % i: b"v" * size}) + tars.file(b"x%d" % i)
            for i, size in enumerate((1, 3900, 4000, 4096, 20_000, 65_535))
        ),
    )
    image = write_image(tar, tmp_path / "image.erofs")
    with mounted(image, tmp_path / "mounted") as got:
        assert (got / "year-one").stat().st_mtime_ns == -62135596800 * 10**9 - 1
        assert (got / "year-9999").stat().st_mtime_ns == 253402300799999999999
        with (got / "terabyte").open("rb") as file:
            file.seek((1 << 40) - 20)
            assert file.read() == bytes(10) + b"the end..."
        for i, size in enumerate((1, 3900, 4000, 4096, 20_000, 65_535)):
            assert os.getxattr(got / f"x{i}", f"user.n{i}") == b"v" * size
    assert image.stat().st_size < 16 << 20


def test_more_links_than_sixteen_bits_can_count(tmp_path):
    count = 66_000
    tar = tars.tar(
        tars.file(b"one", b"data"),
        *(tars.hard_link(b"links/%d" % n, b"one") for n in range(count)),
        *(tars.directory(b"dirs/%d" % n) for n in range(count)),
    )
    image = write_image(tar, tmp_path / "image.erofs")
    with mounted(image, tmp_path / "mounted") as got:
        assert (got / "one").stat().st_nlink == count + 1
        assert (got / "dirs").stat().st_nlink == count + 2
        assert len(os.listdir(got / "links")) == count
        assert {entry.inode() for entry in os.scandir(got / "links")} == {
            (got / "one").stat().st_ino
        }
        assert (got / "links/65999").read_bytes() == b"data"
        assert (got / "dirs/12345").is_dir()


@pytest.mark.parametrize("xattr_size", [0, 100, 2000, 3900, 4010, 5000])
def test_link_targets_and_directories_of_every_size_beside_xattrs(tmp_path, xattr_size):
    """Inline data must not cross a block, whatever stands before it."""
    xattrs = tars.pax({b"SCHILY.xattr.trusted.t": b"x" * xattr_size}) if xattr_size else b""
    lengths = [1, 90, 1500, 3000, 3950, 4000, 4030, 4063, 4064, 4095]
    counts = [0, 1, 15, 16, 17, 40, 300]
    tar = tars.tar(
        *(
            xattrs + tars.gnu_long(b"t" * length, b"K") + tars.symlink(b"link-%d" % length, b"t")
            for length in lengths
        ),
        *(xattrs + tars.directory(b"dir-%d" % count) for count in counts),
        *(
            tars.gnu_long(b"dir-%d/" % count + b"%03d" % n * 80) + tars.file(b"n", b"%d" % n)
            for count in counts
            for n in range(count)
        ),
    )
    image = write_image(tar, tmp_path / "image.erofs")
    with mounted(image, tmp_path / "mounted") as got:
        for length in lengths:
            assert os.readlink(got / f"link-{length}") == "t" * length
        for count in counts:
            names = {f"{n:03}" * 80 for n in range(count)}
            assert set(os.listdir(got / f"dir-{count}")) == names
            for n, name in enumerate(sorted(names)):
                assert (got / f"dir-{count}" / name).read_bytes() == b"%d" % n
        if xattr_size:
            for path in got.iterdir():
                assert len(os.getxattr(path, "trusted.t", follow_symlinks=False)) == xattr_size


def test_overlayfs_takes_whiteouts_and_opaque_directories(tmp_path):
    base = tars.tar(
        *(tars.file(b"%c/%d" % (d, n), b"base") for d in b"abcd" for n in (1, 2)),
        tars.file(b"gone", b"base"),
        tars.file(b"becomes-dir", b"base"),
        tars.file(b"b/sub/old", b"base"),
    )
    layer = tars.tar(
        tars.file(b".wh.gone"),
        tars.file(b"a/.wh.1"),
        tars.directory(b"b/", mode=0o700),
        tars.file(b"b/.wh..wh..opq"),
        tars.file(b"b/new", b"layer"),
        tars.file(b".wh.c"),
        tars.file(b"c/new", b"layer"),
        tars.directory(b"d/"),
        tars.file(b"d/new", b"layer"),
        tars.file(b".wh.d"),
        tars.file(b"becomes-dir/x", b"layer"),
        tars.file(b"only-here/.wh.nothing"),
        tars.file(b"only-here/kept", b"layer"),
    )
    with (
        mounted(write_image(base, tmp_path / "base.erofs"), tmp_path / "base") as lower,
        mounted(write_image(layer, tmp_path / "layer.erofs"), tmp_path / "layer") as upper,
    ):
        hidden = (upper / "a/1").lstat()
        assert stat.S_ISCHR(hidden.st_mode)
        assert hidden.st_rdev == 0
        assert os.getxattr(upper / "b", "trusted.overlay.opaque") == b"y"
        target = tmp_path / "merged"
        target.mkdir()
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={upper}:{lower}", target],
            check=True,
        )
        try:
            files = {
                str(path.relative_to(target)): path.read_bytes()
                for path in target.rglob("*")
                if not path.is_dir()
            }
        finally:
            subprocess.run(["umount", target], check=True)
    assert files == {
        "a/2": b"base",
        "b/new": b"layer",
        "c/new": b"layer",
        "d/new": b"layer",
        "becomes-dir/x": b"layer",
        "only-here/kept": b"layer",
    }
