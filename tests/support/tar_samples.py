"""Tar streams written byte by byte, so that tests can make what no tar program would."""

import io
import os
import tarfile
from collections.abc import Mapping

END = bytes(1024)
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
)
"""``system.posix_acl_access`` of mode 0664: user 1000 may read."""
LONG_NAME = b"deep/" + b"x" * 200 + b"/" + b"y" * 255


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    return (value % (1 << 8 * width) | 1 << 8 * width - 1).to_bytes(width, "big")


def number(value: int, width: int) -> bytes:
    return octal(value, width) if 0 <= value < 8 ** (width - 1) else base256(value, width)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    magic: bytes = b"ustar\00000",
    tail: bytes = b"",
) -> bytes:
    """A header block; ``tail`` replaces what lies behind the device numbers."""
    rest = tail or prefix.ljust(155, b"\0")
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            number(mode, 8),
            number(uid, 8),
            number(gid, 8),
            number(size, 12),
            number(mtime, 12),
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            magic,
            bytes(64),
            number(device[0], 8),
            number(device[1], 8),
            rest,
        )
    ).ljust(512, b"\0")
    assert len(block) == 512, len(block)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | list[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """A PAX header (``g``: a global one) with its records."""
    pairs = records.items() if isinstance(records, Mapping) else records
    body = b"".join(pax_record(key, value) for key, value in pairs)
    return header(b"pax", kind=kind, size=len(body)) + padded(body)


def gnu_long(name: bytes, kind: bytes = b"L") -> bytes:
    """GNU's ``L`` (name) and ``K`` (link) headers."""
    body = name + b"\0"
    return header(b"././@LongLink", kind=kind, size=len(body), magic=b"ustar  \0") + padded(body)


def file(name: bytes, data: bytes = b"", **fields) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)


def directory(name: bytes, mode: int = 0o755, **fields) -> bytes:
    return header(name, kind=b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes, **fields) -> bytes:
    return header(name, kind=b"2", mode=0o777, link=target, **fields)


def hard_link(name: bytes, target: bytes, **fields) -> bytes:
    return header(name, kind=b"1", link=target, **fields)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


def sparse_1_0(name: bytes, real_size: int, segments: list[tuple[int, bytes]]) -> bytes:
    """A sparse file in the PAX format 1.0."""
    lines = [len(segments)]
    for offset, data in segments:
        lines += [offset, len(data)]
    table = padded(b"".join(b"%d\n" % line for line in lines))
    body = table + b"".join(data for _, data in segments)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": b"%d" % real_size,
    }
    return pax(records) + file(b"GNUSparseFile.0/sparse", body)


def odd_layer() -> bytes:
    """One of everything that an ordinary ``tar -x`` unpacks as it should."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    return tar(
        pax({b"comment": b"a global header"}, kind=b"g"),
        directory(b"./", mode=0o751, uid=3, gid=4, mtime=1_600_000_000),
        directory(b"etc/", mtime=1_600_000_000),
        file(b"etc/passwd", b"root:x:0:0\n", mtime=1_600_000_000),
        file(b"etc/empty", mtime=1_600_000_000),
        file(b"./etc//.//dotted", b"x"),
        file(b"/absolute/name", b"confined"),
        directory(b"absolute/", mode=0o700, uid=7),
        file(b"etc/setuid", b"#!", mode=0o6755, uid=1000),
        directory(b"tmp", mode=0o1777),
        symlink(b"etc/link", b"../usr/share/nothing"),
        symlink(b"etc/long-link", b"t" * 100),
        gnu_long(b"u" * 4000, b"K") + symlink(b"etc/longer-link", b"u" * 100),
        gnu_long(LONG_NAME) + file(b"truncated", b"long name"),
        pax({b"path": b"pax/" + LONG_NAME}) + file(b"short", b"longer name"),
        file(b"name", b"with prefix", prefix=b"a/prefix"),
        file(b"caf\xe9\xff\n", b"not UTF-8"),
        file("snowman ☃".encode(), b"UTF-8"),
        file(b"-before-dot", b""),
        file(b"owner", b"big", uid=4_000_000_000, gid=70_000),
        pax({b"uid": b"3000000000", b"gid": b"65536"}) + file(b"pax-owner", b"big"),
        file(b"ancient", b"", mtime=-1_000_000),
        pax({b"mtime": b"1700000000.123456789"}) + file(b"exact", b""),
        pax({b"mtime": b"-1.25"}) + file(b"before-epoch", b""),
        pax({b"mtime": b"1700000000.5"}) + directory(b"exact-dir"),
        header(b"null", kind=b"3", mode=0o666, device=(1, 3)),
        header(b"large-minor", kind=b"4", mode=0o660, device=(259, 70_000)),
        header(b"fifo", kind=b"6", mode=0o600),
        file(b"linked", b"one inode"),
        hard_link(b"etc/linked-too", b"linked"),
        hard_link(b"linked-three", b"./etc/linked-too"),
        hard_link(b"link-to-link", b"etc/link"),
        file(b"twice", b"first"),
        file(b"twice", b"second, which wins", mode=0o600),
        pax({b"SCHILY.xattr.user.binary": b"\0\xff=\n" * 50}) + file(b"xattr", b""),
        pax({b"SCHILY.xattr.user.empty": b""}) + file(b"xattr-empty", b""),
        pax({b"SCHILY.xattr.user.directory": b"v"}) + directory(b"xattr-dir"),
        pax({b"SCHILY.xattr.security.capability": capability}) + file(b"ping", b"", mode=0o755),
        pax({b"SCHILY.xattr.trusted.t": b"for root"}) + file(b"trusted", b""),
        pax({b"SCHILY.xattr.user.large": b"L" * 3000}) + file(b"xattr-large", b""),
        *(
            pax({b"SCHILY.xattr.user.shared": b"the same everywhere" * 4}) + file(b"sh%d" % n)
            for n in range(20)
        ),
        pax({b"SCHILY.xattr.system.posix_acl_access": ACL}) + file(b"acl", b"", mode=0o664),
        file(b"block", b"b" * 4096),
        file(b"more-than-a-block", bytes(range(256)) * 17),
        file(b"contiguous", b"type 7", kind=b"7"),
        file(b"old", b"type NUL", kind=b"\0", magic=bytes(8)),
        header(b"old-directory/", kind=b"\0", mode=0o700, magic=bytes(8)),
        sparse_1_0(
            b"sparse", 10_000_000, [(4096, b"a" * 8192), (9_000_000, b"b"), (10_000_000, b"")]
        ),
        sparse_1_0(b"hole", 50_000, [(50_000, b"")]),
        *(file(b"many/%04d" % n, b"%d" % n) for n in range(600)),
        *(
            gnu_long(b"wide/%s" % (b"%03d" % n * 60)) + directory(b"cut off", mode=0o711)
            for n in range(40)
        ),
    )


def real_tree(path: str) -> bytes:
    """A tar of ``path`` by the standard library, PAX times included."""
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(path, arcname=os.path.basename(path))
        return out.getvalue()
