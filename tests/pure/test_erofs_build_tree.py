"""What names mean while entries come in, and what an image made of them says."""

import posixpath
import stat
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.erofs import ondisk
from lazyfs.erofs.build.builder import SPARSE_OVERHEAD_LIMIT, EntryAttributes, ImageBuilder
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from tests.support.erofs_reader import Found, ImageInMemory


class MemorySpool:
    def __init__(self) -> None:
        self.data = bytearray()

    def append(self, data: bytes | memoryview) -> None:
        self.data += data


def attributes(mode=0o644, uid=0, gid=0, mtime_ns=0, **xattrs) -> EntryAttributes:
    named = {b"user." + name.encode(): value for name, value in xattrs.items()}
    return EntryAttributes(mode, uid, gid, mtime_ns, named)


class Entries:
    """Short words for adding entries."""

    def __init__(self) -> None:
        self.spool = MemorySpool()
        self.builder = ImageBuilder(self.spool)

    def file(self, path: bytes, data: bytes = b"", **given) -> None:
        whole = [ByteRange(0, len(data))]
        self.builder.add_file(path, attributes(**given), len(data), whole, [data] if data else [])

    def directory(self, path: bytes, mode: int = 0o755, **given) -> None:
        self.builder.add_directory(path, attributes(mode, **given))

    def symlink(self, path: bytes, target: bytes) -> None:
        self.builder.add_symlink(path, attributes(0o777), target)

    def hard_link(self, path: bytes, target: bytes) -> None:
        self.builder.add_hard_link(path, target)

    def whiteout(self, path: bytes) -> None:
        self.builder.add_whiteout(path)

    def opaque(self, path: bytes) -> None:
        self.builder.set_opaque(path)

    def image(self) -> bytes:
        metadata = self.builder.finish()
        assert len(metadata) % 4096 == len(self.spool.data) % 4096 == 0
        assert self.builder.data_size == len(self.spool.data)
        return bytes(metadata + self.spool.data)


def tree_of(fill: Callable[[Entries], None]) -> dict[bytes, Found]:
    entries = Entries()
    fill(entries)
    return ImageInMemory(entries.image()).tree()


def test_nothing_makes_a_root():
    tree = tree_of(lambda e: None)
    assert list(tree) == [b"."]
    assert tree[b"."].mode == stat.S_IFDIR | 0o755
    assert tree[b"."].nlink == 2
    assert tree[b"."].nid == 36


@pytest.mark.parametrize("path", [b"", b".", b"./", b"/"])
def test_the_root_has_attributes(path):
    found = tree_of(lambda e: e.directory(path, 0o1700, uid=5, gid=6, mtime_ns=-7, a=b"b"))[b"."]
    assert found.mode == stat.S_IFDIR | 0o1700
    assert found.owner == (5, 6)
    assert found.mtime_ns == -7
    assert found.xattrs == {b"user.a": b"b"}


def test_missing_parents_are_made_and_can_be_described_later():
    def fill(e: Entries) -> None:
        e.file(b"a/b/c", b"data", mtime_ns=10**9)
        e.directory(b"a/b", 0o700, uid=1)

    tree = tree_of(fill)
    assert tree[b"a"].mode == stat.S_IFDIR | 0o755
    assert tree[b"a"].owner == (0, 0)
    assert tree[b"a"].mtime_ns == 0
    assert tree[b"a/b"].mode == stat.S_IFDIR | 0o700
    assert tree[b"a/b/c"].content == b"data"
    assert [tree[path].nlink for path in (b".", b"a", b"a/b", b"a/b/c")] == [3, 3, 2, 1]


def test_the_last_entry_of_a_name_wins():
    def fill(e: Entries) -> None:
        e.file(b"file", b"first")
        e.file(b"file", b"second")
        e.directory(b"dir", 0o700, a=b"1")
        e.file(b"dir/kept")
        e.directory(b"dir", 0o711)
        e.directory(b"to-file")
        e.file(b"to-file/lost")
        e.file(b"to-file", b"now a file")
        e.file(b"to-dir")
        e.directory(b"to-dir")
        e.file(b"back/inside")
        e.file(b"back")
        e.directory(b"back")

    tree = tree_of(fill)
    assert sorted(tree) == [b".", b"back", b"dir", b"dir/kept", b"file", b"to-dir", b"to-file"]
    assert tree[b"file"].content == b"second"
    assert tree[b"dir"].mode == stat.S_IFDIR | 0o711
    assert tree[b"dir"].xattrs == {}
    assert tree[b"to-file"].content == b"now a file"
    for path in (b"to-dir", b"back"):  # what a lower layer has there was hidden by the file
        assert tree[path].xattrs == {b"trusted.overlay.opaque": b"y"}


def test_hard_links_in_any_order():
    def fill(e: Entries) -> None:
        e.hard_link(b"early", b"./later/target")
        e.hard_link(b"chained", b"early")
        e.hard_link(b"chained-backwards", b"z-last")
        e.file(b"later/target", b"data")
        e.hard_link(b"z-last", b"/later/target")
        e.hard_link(b"later/target", b"later/target")
        e.hard_link(b"replaced", b"nowhere")
        e.file(b"replaced", b"own")
        e.symlink(b"link", b"x")
        e.hard_link(b"link2", b"link")

    tree = tree_of(fill)
    same = [b"early", b"chained", b"chained-backwards", b"later/target", b"z-last"]
    assert len({tree[path].nid for path in same}) == 1
    assert all(tree[path].nlink == 5 and tree[path].content == b"data" for path in same)
    assert tree[b"replaced"].nlink == 1
    assert tree[b"link"] == tree[b"link2"]
    assert tree[b"link"].nlink == 2


def test_a_link_keeps_its_inode_when_the_target_is_replaced():
    def fill(e: Entries) -> None:
        e.file(b"a", b"old")
        e.hard_link(b"b", b"a")
        e.file(b"a", b"new")

    tree = tree_of(fill)
    assert (tree[b"a"].content, tree[b"a"].nlink) == (b"new", 1)
    assert (tree[b"b"].content, tree[b"b"].nlink) == (b"old", 1)


@pytest.mark.parametrize(
    "links",
    [
        [(b"a", b"missing")],
        [(b"a", b"whiteout")],
        [(b"a", b"a")],
        [(b"a", b"b"), (b"b", b"a")],
        [(b"c", b"a"), (b"a", b"b"), (b"b", b"a")],
        [(b"a", b"dir")],
        [(b"a", b"later-dir")],
        [(b"a", b".")],
        [(b"a", b"../x")],
    ],
)
def test_hard_links_to_nothing(links):
    entries = Entries()
    entries.directory(b"dir")
    entries.whiteout(b"whiteout")
    with pytest.raises(ConversionError, match=r"'[abc]': hard link to"):  # noqa: PT012
        for path, target in links:
            entries.hard_link(path, target)
        entries.directory(b"later-dir")
        entries.image()


def test_a_long_chain_of_links():
    def fill(e: Entries) -> None:
        for n in range(5000):
            e.hard_link(b"%d" % n, b"%d" % (n + 1))
        e.file(b"5000", b"end")

    tree = tree_of(fill)
    assert {found.nlink for path, found in tree.items() if path != b"."} == {5001}


def test_symlinks_on_the_way_are_followed_inside_the_image():
    def fill(e: Entries) -> None:
        e.symlink(b"bin", b"usr/bin")
        e.file(b"bin/sh", b"shell")
        e.symlink(b"usr/local", b"/opt/./")
        e.file(b"usr/local/x", b"opt")
        e.symlink(b"out", b"../../../etc")
        e.file(b"out/passwd", b"inside")
        e.hard_link(b"sh", b"bin/sh")

    tree = tree_of(fill)
    assert tree[b"usr/bin/sh"].content == b"shell"
    assert tree[b"opt/x"].content == b"opt"
    assert tree[b"etc/passwd"].content == b"inside"
    assert tree[b"sh"].nid == tree[b"usr/bin/sh"].nid
    assert stat.S_ISLNK(tree[b"bin"].mode)


def test_as_many_symlinks_are_followed_as_linux_follows():
    def fill(e: Entries, links: int) -> None:
        for n in range(links):
            e.symlink(b"%d" % n, b"%d" % (n + 1))
        e.file(b"0/file", b"data")

    assert tree_of(lambda e: fill(e, 40))[b"40/file"].content == b"data"
    with pytest.raises(ConversionError, match="too many symlinks"):
        tree_of(lambda e: fill(e, 41))


@pytest.mark.parametrize("parent", ["file", "loop", "link", "long"])
def test_parents_that_are_no_directories(parent):
    entries = Entries()
    entries.file(b"file")
    entries.symlink(b"loop", b"loop")
    entries.hard_link(b"link", b"nowhere yet")
    entries.symlink(b"long", b"n" * 256)
    with pytest.raises(ConversionError, match=f"{parent}/child"):
        entries.file(parent.encode() + b"/child")


def test_whiteouts_hide_lower_layers_only():
    def fill(e: Entries) -> None:
        e.whiteout(b"gone")
        e.file(b"here", b"kept")
        e.whiteout(b"here")
        e.whiteout(b"new")
        e.file(b"new", b"wins")
        e.directory(b"dir")
        e.file(b"dir/in")
        e.whiteout(b"dir")
        e.whiteout(b"redone/sub")
        e.file(b"redone/sub/in")
        e.file(b"made/in")
        e.opaque(b"made")
        e.directory(b"made", 0o700, a=b"1")
        e.opaque(b"")

    tree = tree_of(fill)
    opaque = {b"trusted.overlay.opaque": b"y"}
    origin = {b"trusted.overlay.origin": b""}
    assert tree[b"gone"].mode == stat.S_IFCHR
    assert tree[b"gone"].rdev == (0, 0)
    assert tree[b"here"].content == b"kept"
    assert tree[b"new"].content == b"wins"
    assert tree[b"dir"].xattrs == opaque
    assert tree[b"dir/in"].nlink == 1
    assert tree[b"redone/sub"].xattrs == opaque
    assert tree[b"redone"].xattrs == {}
    assert tree[b"made"].xattrs == {b"user.a": b"1", **opaque}
    assert tree[b"."].xattrs == opaque | origin


@pytest.mark.parametrize(
    "add",
    [
        lambda e: e.file(b""),
        lambda e: e.file(b"a/../../b"),
        lambda e: e.file(b"a", uid=1 << 32),
        lambda e: e.file(b"a", gid=-1),
        lambda e: e.file(b"a", mtime_ns=10**9 << 63),
        lambda e: e.file(b"a", x=bytes(65536)),
        lambda e: e.symlink(b"a", b""),
        lambda e: e.symlink(b"a", b"t" * 4096),
        lambda e: e.symlink(b"a", b"t\0"),
        lambda e: e.builder.add_special(b"a", attributes(), stat.S_IFCHR, 4096, 0),
        lambda e: e.builder.add_special(b"a", attributes(), stat.S_IFBLK, 0, 1 << 20),
        lambda e: e.builder.add_file(b"a", attributes(), 10, [ByteRange(5, 6)], []),
        lambda e: e.builder.add_file(b"a", attributes(), (1 << 63) - 1, [], []),
    ],
)
def test_entries_that_cannot_be(add):
    with pytest.raises(ConversionError):
        add(Entries())


def test_sparse_files_cannot_fill_the_disk():
    entries = Entries()
    size = 1 << 55
    with pytest.raises(ConversionError, match=str(SPARSE_OVERHEAD_LIMIT)):  # noqa: PT012
        for n in range(100):
            segments = [ByteRange(0, 1), ByteRange(size - 1, 1)]
            entries.builder.add_file(b"%d" % n, attributes(), size, segments, [b"ab"])
    assert len(entries.spool.data) < SPARSE_OVERHEAD_LIMIT


def test_unknown_xattrs_are_dropped_and_counted():
    entries = Entries()
    given_xattrs = {b"com.apple.x": b"1", b"user.kept": b"2"}
    entries.builder.add_directory(b"d", EntryAttributes(0, 0, 0, 0, given_xattrs))
    assert entries.builder.dropped_xattrs == 1
    assert ImageInMemory(entries.image()).tree()[b"d"].xattrs == {b"user.kept": b"2"}


def test_inodes_are_compact_where_nothing_is_lost():
    def fill(e: Entries) -> None:
        for n in range(20):
            e.file(b"same/%02d" % n, mtime_ns=5)
        e.directory(b"same", mtime_ns=5)
        e.file(b"same/zz", mtime_ns=6)
        e.file(b"same/zzz", mtime_ns=5, uid=65536)
        e.file(b"same/zzzz", mtime_ns=5, gid=65536)

    tree = tree_of(fill)
    nids = [tree[b"same/%02d" % n].nid for n in range(20)]
    assert nids == list(range(nids[0], nids[0] + 20))
    assert tree[b"same/zz"].nid + 2 == tree[b"same/zzz"].nid
    assert tree[b"same/zzz"].owner == (65536, 0)
    assert tree[b"same/zzzz"].owner == (0, 65536)
    assert {tree[b"same/zz"].mtime_ns, tree[b"same/00"].mtime_ns} == {5, 6}


def test_children_lie_together_in_metadata():
    def fill(e: Entries) -> None:
        for d in range(30):
            for n in range(30):
                e.file(b"%02d/%02d" % (n, d), b"", mtime_ns=n)

    tree = tree_of(fill)
    for d in range(30):
        nids = [tree[b"%02d/%02d" % (d, n)].nid for n in range(30)]
        assert nids == sorted(nids)
        assert nids[-1] - nids[0] < 30 * 2


def test_shared_xattrs_are_stored_once():
    def fill(e: Entries) -> None:
        for n in range(100):
            e.file(b"%d" % n, label=b"the same label " * 20, own=b"%d" % n)

    entries = Entries()
    fill(entries)
    image = entries.image()
    assert image.count(b"the same label " * 20) == 1
    for n in range(100):
        xattrs = ImageInMemory(image).tree()[b"%d" % n].xattrs if n % 33 == 0 else None
        if xattrs is not None:
            assert xattrs == {b"user.label": b"the same label " * 20, b"user.own": b"%d" % n}


def test_the_superblock_names_the_features_in_use():
    plain, sparse = Entries(), Entries()
    plain.file(b"a", b"data")
    sparse.builder.add_file(b"a", attributes(), 9000, [ByteRange(8192, 1)], [b"x"])
    for entries, incompatible in ((plain, 0), (sparse, ondisk.EROFS_FEATURE_INCOMPAT_CHUNKED_FILE)):
        image = entries.image()
        superblock = ondisk.SUPER_BLOCK.decode(image, 1024)
        assert superblock.feature_incompat == incompatible
        assert superblock.feature_compat == 3
        assert superblock.blocks_lo == len(image) // 4096 == 2
        assert superblock.inos == 2


def test_the_bytes_depend_on_the_content_and_nothing_else():
    def image(last: bytes, order: int = 1) -> bytes:
        entries = Entries()
        for name in [b"a", b"b", b"c"][::order]:
            entries.file(b"same-" + name, b"")
        entries.file(b"x", last)
        return entries.image()

    assert image(b"1") == image(b"1") == image(b"1", -1)
    one, two = image(b"1"), image(b"2")
    assert one[1072:1088] != two[1072:1088]  # the UUID
    assert one[1072 + 6] >> 4 == 8
    assert one[1072 + 8] >> 6 == 0b10


NAMES = st.sampled_from([b"a", b"b", b"-", b"...", b"\xff", b"n" * 255])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TIMES = st.sampled_from([0, 1, -1, 10**9, 1_700_000_000_123_456_789, -(10**18)])
OPERATIONS = st.one_of(
    st.tuples(st.just("file"), PATHS, st.binary(max_size=9000), TIMES),
    st.tuples(st.just("directory"), PATHS, st.just(b""), TIMES),
    st.tuples(st.just("symlink"), PATHS, st.binary(min_size=1, max_size=4095), TIMES),
)


def expected(operations) -> dict[bytes, tuple[str, bytes, int]]:
    """A plain model: a map of paths, in which an entry removes what it cannot keep."""
    model: dict[bytes, tuple[str, bytes, int]] = {}
    for kind, path, data, mtime in operations:
        old = model.get(path)
        if not (kind == "directory" and old and old[0] == "directory"):
            for name in [name for name in model if name.startswith(path + b"/")]:
                del model[name]
        parent = posixpath.dirname(path)
        while parent:
            model.setdefault(parent, ("directory", b"", 0))
            parent = posixpath.dirname(parent)
        model[path] = (kind, data, mtime)
    return model


@given(st.lists(OPERATIONS, max_size=25))
def test_any_entries_read_back(operations):
    entries = Entries()
    done: list[tuple[str, bytes, bytes, int]] = []
    for kind, path, data, mtime in operations:
        parents = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
        model = expected(done)
        if any(model.get(parent, ("directory",))[0] != "directory" for parent in parents):
            continue
        done.append((kind, path, data, mtime))
        given_attributes = attributes(mtime_ns=mtime)
        if kind == "file":
            entries.file(path, data, mtime_ns=mtime)
        elif kind == "directory":
            entries.builder.add_directory(path, given_attributes)
        elif b"\0" in data:
            done.pop()
        else:
            entries.builder.add_symlink(path, given_attributes, data)
    found = ImageInMemory(entries.image()).tree()
    del found[b"."]
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    assert {
        path: (kinds[stat.S_IFMT(one.mode)], one.content, one.mtime_ns)
        for path, one in found.items()
    } == expected(done)
    for path, one in found.items():
        if stat.S_ISDIR(one.mode):
            inside = [p for p in found if posixpath.dirname(p) == path]
            assert one.nlink == 2 + sum(stat.S_ISDIR(found[p].mode) for p in inside)
