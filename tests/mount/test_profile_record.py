"""What ``lazyfs profile record`` finds is what was read, by either driver and in a container."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lazyfs.profile.document import Profile, decode_profile
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.images import noise
from tests.support.lazy_mounts import forget_pages, lazyfs, mounted, ready
from tests.support.mounting import needs_fuse
from tests.support.registry_server import RegistryServer
from tests.support.small_layers import small_image
from tests.support.survival import kill_daemon
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

READ_AHEAD_BYTES = 1 << 20
"""What the kernel may read besides what was asked for: behind it, by file or by layer."""

WITHIN_S = 60

LOWER = {f"lower/{number:02}": noise(300_000, b"%d" % number) for number in range(40)}
UPPER = {"upper/big": noise(20 << 20, b"big"), "lower/07": noise(300_000, b"new")}
WANTED = ["lower/31", "lower/07", "lower/03"]


@pytest.fixture(scope="module")
def image(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "profile-layout"
    write_layout(layout, "tar", [LOWER, UPPER])
    return push_and_convert(layout, "tar", "profile", registry, work_folder / "raw-p")


def recorded(*words: str | Path) -> Profile:
    done = lazyfs("profile", "record", *words, "-o", "-")
    return decode_profile(done.stdout.encode())


def whole_files(profile: Profile) -> list[tuple[int, str]]:
    """Files that were read from beginning to end, in order."""
    length: dict[tuple[int, str], int] = {}
    for file in profile.files:
        key = file.layer, os.fsdecode(file.path)
        length[key] = length.get(key, 0) + file.length
    return [key for key, found in length.items() if found == 300_000]


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_a_mount_tells_what_was_read(image: ConvertedImage, driver: str, tmp_path: Path):
    options = ("--driver", driver, "--cache-dir", tmp_path / "cache")
    with mounted(image.name, tmp_path / "mnt", *options) as mount:
        for name in WANTED:
            (mount.path / name).read_bytes()
        with (mount.path / "upper/big").open("rb") as big:
            big.seek(9 << 20)
            big.read(1)
        profile = recorded(mount.path)
    assert profile.image == image.result["digest"]
    assert profile.layers == tuple(layer["digest"] for layer in image.manifest["layers"])
    in_order = [key for key in whole_files(profile) if key[1] in WANTED]
    assert in_order == [(0, "lower/31"), (1, "lower/07"), (0, "lower/03")]
    asked = len(WANTED) * 300_000 + 1
    assert sum(file.length for file in profile.files) <= asked + 4 * READ_AHEAD_BYTES
    parts = [file for file in profile.files if file.path == b"upper/big"]
    assert any(part.offset <= 9 << 20 < part.offset + part.length for part in parts)
    assert {part.layer for part in parts} == {1}


def test_what_the_store_has_is_recorded_like_what_it_lacks(image: ConvertedImage, tmp_path: Path):
    cache = ("--cache-dir", tmp_path / "cache")
    with mounted(image.name, tmp_path / "one", *cache) as mount:
        (mount.path / WANTED[0]).read_bytes()
        first = recorded(mount.path)
        forget_pages([mount.path / WANTED[0]])
        (mount.path / WANTED[0]).read_bytes()
        assert recorded(mount.path) == first, "a block is named once"
    with mounted(image.name, tmp_path / "two", *cache) as mount:
        (mount.path / WANTED[0]).read_bytes()
        assert whole_files(recorded(mount.path)) == whole_files(first)


def test_a_daemon_that_took_over_says_that_its_recording_is_incomplete(
    image: ConvertedImage, tmp_path: Path
):
    with mounted(image.name, tmp_path / "mnt", "--cache-dir", tmp_path / "cache") as mount:
        kill_daemon(mount.folder)
        (mount.path / WANTED[0]).read_bytes()
        done = lazyfs("profile", "record", mount.path, "-o", tmp_path / "a.profile")
        assert "replaced" in done.stderr
        assert (0, WANTED[0]) in whole_files(decode_profile((tmp_path / "a.profile").read_bytes()))


def test_what_a_promoted_mount_may_have_missed_is_said(image: ConvertedImage, tmp_path: Path):
    lines = ("--driver", "kernel", "--promote", "--prefetch", "none")
    with mounted(image.name, tmp_path / "mnt", *lines, "--cache-dir", tmp_path / "c") as mount:
        done = lazyfs("profile", "record", mount.path, "-o", "-", check=False)
    assert "local files" in done.stderr


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_ctrl_c_ends_a_command_that_does_not_mind_it(tmp_path: Path, runtime: str):
    image = small_image(tmp_path)
    file = tmp_path / "a.profile"
    options = ("--cache-dir", image.cache, "--runtime", runtime, "-o", file)
    script = "trap '' INT TERM; cat /data/large > /dev/null; echo ready; sleep 1000"
    words = ("profile", "record", *options, image.name, "--", "sh", "-c", script)
    with ready(*words, stderr=subprocess.PIPE) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, said
    assert "the command was ended, with status 137" in said
    assert read_of(decode_profile(file.read_bytes()), "/data/large")


def test_the_time_ends_a_command_too(tmp_path: Path):
    image = small_image(tmp_path)
    file = tmp_path / "a.profile"
    options = ("--cache-dir", image.cache, "--for", "10ms", "-o", file)
    done = lazyfs("profile", "record", *options, image.name, "--", "sh", "-c", "sleep 1000")
    assert "the command was ended, with status" in done.stderr
    assert decode_profile(file.read_bytes()).blocks


def sizes(image: ConvertedImage) -> dict[str, int]:
    tree = json.loads(lazyfs("inspect", image.name, "--tree", "--json").stdout)["tree"]
    return {entry["path"]: entry["size"] for entry in tree}


def read_of(profile: Profile, path: str) -> int:
    return sum(file.length for file in profile.files if "/" + os.fsdecode(file.path) == path)


def test_a_command_in_a_container_is_recorded(big_image: ConvertedImage, tmp_path: Path):
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    cache = ("--cache-dir", tmp_path / "cache")
    first, second, third = "/usr/bin/find", "/usr/bin/tar", "/usr/bin/gpgv"
    size = sizes(big_image)
    command = ("cat", first, second)
    done = lazyfs("profile", "record", big_image.name, *cache, "-o", one, "--", *command)
    assert " files" in done.stderr
    profile = decode_profile(one.read_bytes())
    assert [read_of(profile, path) for path in (first, second)] == [size[first], size[second]]
    paths = ["/" + os.fsdecode(file.path) for file in profile.files]
    assert paths.index("/usr/bin/cat") < paths.index(first) < paths.index(second)
    assert profile.touched_bytes < size[first] + size[second] + (12 << 20)

    script = f"cat {second} {third}; sleep 1000"
    options = ("--for", "1.5s", *cache, "-o", two)
    lazyfs("profile", "record", *options, big_image.name, "--", "sh", "-c", script)
    lazyfs("profile", "merge", one, two, "-o", both)
    shown = json.loads(lazyfs("profile", "show", both, "--json").stdout)
    assert shown["runs"] == 2
    paths = [file["path"] for file in shown["files"]]
    assert paths.index(second) < paths.index(first), "what both read comes first"
    assert read_of(decode_profile(both.read_bytes()), third) == size[third]
    assert "made of  2 recordings" in lazyfs("profile", "show", both).stdout


def test_what_cannot_be_recorded_is_said(image: ConvertedImage, tmp_path: Path):
    done = lazyfs("profile", "record", tmp_path, "-o", "-", check=False)
    assert done.returncode == 1
    assert "not a lazyfs mount" in done.stderr
    done = lazyfs("profile", "record", tmp_path, "-o", tmp_path / "no/file", check=False)
    assert done.returncode == 1
    assert "no is no directory" in done.stderr
    done = lazyfs("profile", "record", image.name, "-o", "-", "--", "/nothing", check=False)
    assert done.returncode == 0, "what was read until then is a recording all the same"
    assert "status 127" in done.stderr
