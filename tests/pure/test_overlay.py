"""The rules of overlayfs, one by one."""

import stat

import pytest

from lazyfs.overlay import OPAQUE_XATTR, is_opaque, is_whiteout, visible_xattrs


@pytest.mark.parametrize("permissions", [0, 0o600, 0o7777])
def test_a_character_device_without_a_number_is_a_whiteout(permissions: int):
    assert is_whiteout(stat.S_IFCHR | permissions, 0, 0)


@pytest.mark.parametrize(
    ("mode", "major", "minor"),
    [
        (stat.S_IFCHR, 0, 1),
        (stat.S_IFCHR, 1, 0),
        (stat.S_IFBLK, 0, 0),
        (stat.S_IFREG, 0, 0),
        (stat.S_IFDIR, 0, 0),
        (stat.S_IFIFO, 0, 0),
        (stat.S_IFSOCK, 0, 0),
        (stat.S_IFLNK, 0, 0),
        (0, 0, 0),
    ],
)
def test_nothing_else_is_one(mode: int, major: int, minor: int):
    assert not is_whiteout(mode, major, minor)


def test_only_y_makes_a_directory_opaque():
    assert is_opaque({OPAQUE_XATTR: b"y"})
    for value in (b"", b"n", b"x", b"Y", b"yes", b"y\0"):
        assert not is_opaque({OPAQUE_XATTR: value})
    assert not is_opaque({})
    assert not is_opaque({b"user.overlay.opaque": b"y"})


def test_the_overlay_hides_its_own_attributes_and_no_others():
    shown = {
        b"user.overlay.opaque": b"y",
        b"trusted.overlayfs": b"1",
        b"trusted.other": b"2",
        b"security.capability": b"3",
        b"system.posix_acl_access": b"4",
    }
    hidden = {
        b"trusted.overlay.": b"",
        b"trusted.overlay.opaque": b"y",
        b"trusted.overlay.origin": b"",
        b"trusted.overlay.overlay.opaque": b"y",
    }
    assert visible_xattrs(shown | hidden) == shown
