"""With its profile an image starts again without asking its registry for anything more."""

import time
from pathlib import Path

import pytest

from tests.support.converted import ConvertedImage
from tests.support.lazy_mounts import LazyMount, lazyfs, mounted, output
from tests.support.mounting import needs_fuse
from tests.support.registry_server import RegistryServer, running_registry

pytestmark = [pytest.mark.mount, needs_fuse]

START = ("python3", "-c", "import numpy; print(numpy.arange(10).sum())")
POLL_S = 0.05


def start(mount: LazyMount) -> str:
    return output("chroot", mount.path, *START)


def fetched_ahead(mount: LazyMount) -> dict:
    """What the status says of the profile once all of it has come."""
    while True:
        profile: dict = mount.status()["profile"]
        if profile["state"] not in ("looking", "fetching"):
            return profile
        time.sleep(POLL_S)


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_a_start_needs_what_its_profile_named(
    big_image: ConvertedImage, registry: RegistryServer, driver: str, tmp_path: Path
):
    options = ("--driver", driver, "--timeout", "10s")
    with running_registry(registry.storage.parent) as own:
        name = big_image.name_at(own.host)
        cache = ("--cache-dir", tmp_path / "first")
        with mounted(name, tmp_path / "one", *options, *cache, "--prefetch", "none") as mount:
            assert start(mount) == "45\n"
            lazyfs("profile", "record", mount.path, "-o", tmp_path / "a.profile")
            needed = mount.totals()["fetched_bytes"]
        lazyfs("profile", "push", tmp_path / "a.profile", name)
        assert big_image.result["digest"] in lazyfs("profile", "show", name).stdout

        cache = ("--cache-dir", tmp_path / "second")
        with mounted(name, tmp_path / "two", *options, *cache) as mount:
            profile = fetched_ahead(mount)
            assert profile["state"] == "done"
            assert profile["failed_bytes"] == profile["dropped_blocks"] == 0
            fetched = mount.totals()["fetched_bytes"]
            assert profile["wanted_bytes"] <= fetched <= 1.1 * needed
            own.stop()
            assert start(mount) == "45\n"
            assert mount.totals()["fetched_bytes"] == fetched
            assert mount.totals()["errors"] == 0
            assert "profile   done" in lazyfs("status", mount.path).stdout


def test_a_daemon_that_takes_over_goes_on_with_it(big_image: ConvertedImage, tmp_path: Path):
    with mounted(
        big_image.name, tmp_path / "one", "--cache-dir", tmp_path / "first", "--prefetch", "none"
    ) as mount:
        assert start(mount) == "45\n"
        without = mount.totals()["cache_misses"]
        lazyfs("profile", "record", mount.path, "-o", tmp_path / "a.profile")
    options = ("--cache-dir", tmp_path / "second", "--profile", tmp_path / "a.profile")
    with mounted(big_image.name, tmp_path / "two", *options) as mount:
        lazyfs("restart", mount.path)
        profile = fetched_ahead(mount)
        assert profile["state"] == "done"
        misses = mount.totals()["cache_misses"]
        assert start(mount) == "45\n"
        # What is read ahead, by the kernel or of a walk, depends on the moment.
        assert mount.totals()["cache_misses"] - misses < without / 2


def test_what_is_no_profile_is_refused_before_anything_is_mounted(
    big_image: ConvertedImage, tmp_path: Path
):
    path = tmp_path / "a.profile"
    path.write_text("{}")
    (tmp_path / "mnt").mkdir()
    words = ("mount", big_image.name, tmp_path / "mnt", "--profile", path)
    done = lazyfs(*words, check=False)
    assert done.returncode == 1
    assert "not a profile" in done.stderr
