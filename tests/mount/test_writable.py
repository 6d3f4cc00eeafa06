"""``lazyfs mount --rw``: an overlay that lives and dies with its mount."""

import json
import os
import signal
from pathlib import Path

import pytest

from lazyfs.mount.changes import state_folder, sweep_changes
from lazyfs.mount.mountinfo import current_mounts, top_mount
from tests.support import images
from tests.support.lazy_mounts import PROGRAM, LazyMount, lazyfs, mounted
from tests.support.mounting import kill, needs_fuse, wait_for_end
from tests.support.nobody import nobody
from tests.support.overlay_oracle import run
from tests.support.small_layers import SmallImage, small_image
from tests.support.trees import assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> SmallImage:
    return small_image(tmp_path_factory.mktemp("image"))


def is_mounted(directory: Path) -> bool:
    return top_mount(os.fspath(directory), current_mounts()) is not None


def is_gone(lazy: LazyMount) -> bool:
    """Whether nothing at all is left of a mount, once others were tidied up after."""
    lazyfs("umount", lazy.path, check=False)
    left = (state_folder() / lazy.folder.name, lazy.folder)
    return not is_mounted(lazy.path) and not any(path.exists() for path in left)


def test_changes_go_with_the_mount(image: SmallImage, tmp_path: Path):
    target = tmp_path / "mnt"
    with mounted(image.name, tmp_path / "plain", "--cache-dir", image.cache) as plain:
        wanted, wanted_root = look(plain.path), plain.path.stat()
    with mounted(image.name, target, "--rw", "--cache-dir", image.cache) as lazy:
        root = {b".": wanted[b"."]}  # is the upper directory
        assert_same(look(target) | root, wanted)
        assert target.stat().st_mode == wanted_root.st_mode
        (target / "moved").rename(target / "elsewhere")
        (target / "data/large").unlink()
        (target / "new").write_bytes(b"x")
        changes = Path(lazy.status()["changes"])
        assert (changes / "upper/new").read_bytes() == b"x"
        assert lazy.status()["mountpoint"] == os.fspath(target)
        lazyfs("umount", target)
        assert is_gone(lazy)
        assert not changes.exists()


def test_changes_are_kept_where_they_shall_be(image: SmallImage, tmp_path: Path):
    words = (image.name, tmp_path / "mnt", f"--rw={tmp_path}/changes", "--cache-dir", image.cache)
    with mounted(*words) as lazy:
        (lazy.path / "data/first").write_bytes(b"kept")
        run("umount", lazy.path)  # not by us
        assert wait_for_end(lazy.pid)
        assert is_gone(lazy)
    with mounted(*words) as lazy:
        assert (lazy.path / "data/second").read_bytes() == b"kept", "hard links were split"
        second = ("mount", "--mkdir", f"--rw={tmp_path}/changes", image.name, tmp_path / "second")
        assert "one overlay at a time" in lazyfs(*second, check=False).stderr
        assert not is_mounted(tmp_path / "second")
        assert (lazy.path / "data/second").read_bytes() == b"kept"
    (tmp_path / "changes/image").write_text("another")
    assert "another image" in lazyfs("mount", *words, check=False).stderr
    assert not is_mounted(tmp_path / "mnt")


def test_it_survives_its_daemon(image: SmallImage, tmp_path: Path):
    with mounted(image.name, tmp_path / "mnt", "--rw", "--cache-dir", image.cache) as lazy:
        (lazy.path / "new").write_bytes(b"x")
        with open(lazy.path / "data/large", "rb") as file:
            kill(lazy.pid, signal.SIGKILL)
            assert wait_for_end(lazy.pid)
            assert file.read() == images.noise(3 << 20)
        lazyfs("restart", lazy.path)
        assert lazy.status()["restarts"] == 2
        assert (lazy.path / "moved/inside/file").read_bytes() == b"deep"
        assert (lazy.path / "new").read_bytes() == b"x"


def test_what_others_have_is_left_alone(image: SmallImage, tmp_path: Path):
    with mounted(image.name, tmp_path / "mnt", "--rw", "--cache-dir", image.cache) as lazy:
        note = state_folder() / lazy.folder.name / "runtime"
        mine = note.read_text()
        note.write_text("/run/of/a/container/lazyfs/0123456789ab")
        sweep_changes()
        assert (note.parent / "upper").is_dir()
        note.write_text(mine)


@pytest.mark.parametrize("end", ["daemon told to end", "all killed"])
def test_nothing_is_left_however_it_ends(image: SmallImage, tmp_path: Path, end: str):
    with mounted(image.name, tmp_path / "mnt", "--rw", "--cache-dir", image.cache) as lazy:
        (lazy.path / "new").write_bytes(b"x")
        if end == "all killed":
            lazy.kill()
            assert lazy.status()["state"] == "dead"
            with pytest.raises(OSError, match="not connected"):
                (lazy.path / "data/large").read_bytes()
            assert (lazy.path / "new").read_bytes() == b"x"
        else:
            kill(lazy.pid, signal.SIGTERM)
            assert wait_for_end(lazy.pid)
        assert is_gone(lazy)


def test_without_root(image: SmallImage, tmp_path: Path):
    run("chmod", "-R", "a+rX", image.layout.parent)
    for folder in image.layout.parent.parents:
        folder.chmod(folder.stat().st_mode | 0o055)
    script = (
        'mount=$1; shift; "$@" mount --quiet --rw --mkdir "$IMAGE" mnt && '
        'grep " $PWD/mnt " /proc/self/mountinfo && '
        "cat mnt/data/changed && rm mnt/data/third && mv mnt/moved mnt/moved2 && ls mnt/data && "
        '"$@" status --json mnt | head -c0; "$@" umount mnt && find . -name upper'
    )
    for way, kind in (([], "fuse.fuse-overlayfs"), (["unshare", "-Urm"], "userxattr")):
        with nobody() as user:
            done = user.run(*way, "sh", "-c", script, "sh", "x", *PROGRAM, IMAGE=image.name)
            assert done.returncode == 0, done.stderr
            assert kind in done.stdout
            assert "the new one" in done.stdout
            assert "third" not in done.stdout.split()
            assert "upper" not in done.stdout.split("/")


def test_json_says_where_changes_are(image: SmallImage, tmp_path: Path):
    with mounted(image.name, tmp_path / "mnt", "--rw", "--cache-dir", image.cache) as lazy:
        [document] = json.loads(lazyfs("status", "--json", lazy.path).stdout)
        assert Path(document["changes"]).is_relative_to(state_folder())
        assert "dropped" in lazyfs("status", lazy.path).stdout
