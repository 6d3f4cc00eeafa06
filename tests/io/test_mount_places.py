"""What the mount commands conclude from paths, names and the kernel's list of mounts."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import MountError
from lazyfs.fuse.kernelmount import MountChoice
from lazyfs.model import VerifyMode
from lazyfs.mount import mountpoint
from lazyfs.mount.mountinfo import MountEntry, current_mounts, parse_mountinfo, top_mount
from lazyfs.mount.options import MountOptions
from lazyfs.mount.request import MountRequest, absolute_image
from lazyfs.mount.runtime import RuntimeFolder

MOUNTINFO = rb"""
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue
44 27 0:39 / /a\040b\011c\134d ro,nosuid - fuse.lazyfs lazyfs:app ro,user_id=0
45 27 0:40 / /mnt2 ro - fuse.lazyfs lazyfs:x ro
half a line
46 27 0:41 / /x ro
"""


def test_mountinfo():
    entries = parse_mountinfo(MOUNTINFO)
    assert entries == [
        MountEntry("0:20", "/sys", "sysfs", "sysfs"),
        MountEntry("98:0", "/mnt2", "ext3", "/dev/root"),
        MountEntry("0:39", "/a b\tc\\d", "fuse.lazyfs", "lazyfs:app"),
        MountEntry("0:40", "/mnt2", "fuse.lazyfs", "lazyfs:x"),
    ]
    assert top_mount("/mnt2", entries) == entries[3]
    assert top_mount("/mnt", entries) is None


@given(st.binary())
def test_mountinfo_takes_anything(text):
    parse_mountinfo(text)


def test_the_real_list_has_proc():
    proc = top_mount("/proc", current_mounts())
    assert proc is not None
    assert proc.file_system_type == "proc"


@given(
    st.builds(
        MountOptions,
        cache_dir=st.just(Path("/cache\udcff dir")),
        cache_size_bytes=st.none() | st.integers(0, 1 << 60),
        verify=st.sampled_from(VerifyMode),
        platform=st.none() | st.text(),
        timeout_s=st.floats(0, 1e6),
        prefetch=st.sampled_from(["none", "all"]),
        plain_http=st.booleans(),
        suid=st.booleans(),
    )
)
def test_requests_survive_the_command_line(options):
    folder = RuntimeFolder(Path("/run/lazyfs/ab"))
    request = MountRequest("oci:/x:tag", "/mnt/\udcff", options, folder)
    assert MountRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("name", "absolute"),
    [
        ("docker.io/library/debian:12", "docker.io/library/debian:12"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("docker://app", "docker://app"),
        ("oci:dir:tag", "oci:/base/dir:tag"),
        ("oci:/there/dir", "oci:/there/dir"),
        ("oci-archive:a.tar", "oci-archive:/base/a.tar"),
        ("docker-archive:../a.tar", "docker-archive:/base/../a.tar"),
        ("erofs:a,device=b,device=/c", "erofs:/base/a,device=/base/b,device=/c"),
        ("oci", "oci"),
    ],
)
def test_paths_in_image_names_become_absolute(name, absolute):
    assert absolute_image(name, Path("/base")) == absolute


def test_resolving_follows_links_but_looks_into_nothing(tmp_path):
    real = tmp_path.resolve()
    (tmp_path / "dir").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "dir")
    (tmp_path / "up").symlink_to("dir/../dir")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("dir", "dir/", "dir/.", "one", "two/", "up", "dir/../one"):
        assert mountpoint.resolve(f"{tmp_path}/{name}") == os.fspath(real / "dir")
    assert mountpoint.resolve(f"{tmp_path}/one/x") == os.fspath(real / "dir/x")
    assert mountpoint.resolve("/") == "/"
    with pytest.raises(MountError, match="too many symbolic links"):
        mountpoint.resolve(f"{tmp_path}/loop")


def test_preparing_a_mountpoint(tmp_path):
    elsewhere = [Path("/nowhere")]
    wanted = os.fspath(tmp_path.resolve() / "a/b")
    with pytest.raises(MountError, match="does not exist"):
        mountpoint.prepare(f"{tmp_path}/a/b", elsewhere, create=False)
    assert mountpoint.prepare(f"{tmp_path}/a/b", elsewhere, create=True) == (wanted, True)
    assert mountpoint.prepare(f"{tmp_path}/a/b/", elsewhere, create=True) == (wanted, False)
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="is not a directory"):
        mountpoint.prepare(f"{tmp_path}/file", elsewhere, create=True)
    with pytest.raises(MountError, match="would hide"):
        mountpoint.prepare(f"{tmp_path}/a", [tmp_path / "a/b/cache"], create=False)
    with pytest.raises(MountError, match="would hide"):
        mountpoint.prepare("/", elsewhere, create=False)


def test_mount_options_are_plain_ascii_without_commas():
    options = MountChoice(
        "erofs:/ä b,device=c\\d\n", allow_other=False, suid=True, dev=False
    ).for_helper()
    assert options == {
        "fsname=lazyfs:erofs:/__b_device=c_d_",
        "subtype=lazyfs",
        "ro",
        "default_permissions",
        "suid",
    }
    [name] = [
        o
        for o in MountChoice("x" * 9999, allow_other=True, suid=False, dev=False).for_helper()
        if o.startswith("fsname=")
    ]
    assert len(name) < 300
