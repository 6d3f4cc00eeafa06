"""Little is fetched, what was fetched stays usable, and nothing that was kept is believed."""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support import images
from tests.support.converted import ConvertedImage
from tests.support.counting_proxy import counting_proxy
from tests.support.layer_blob import take_apart
from tests.support.lazy_mounts import COMMAND_WITHIN_S, forget_pages, lazyfs, mounted, output
from tests.support.mounting import needs_fuse
from tests.support.nobody import nobody
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.trees import Facts, assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

LISTING_SHARE = 0.02
"""What listing the root may fetch of the image's blobs."""

ENOUGH_BYTES = 30 << 20
"""How much is fetched before the daemon is killed."""

SLACK_BYTES = 1 << 20
"""What may be fetched twice besides damaged chunks: superblocks, tables, tops of trees."""

GREP_FAILED = 2
"""How grep ends if it could not read something."""

DAMAGES = (
    lambda data: data[: len(data) // 2],
    lambda data: b"",
    lambda data: bytes(len(data)),
    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
)
"""What may have become of a cached chunk."""

NUMPY = ("python3", "-c", "import numpy; print(numpy.arange(10).sum())")
READ_BY_NUMPY = ("usr/bin", "usr/lib/python3*", "usr/lib/*-linux-gnu", "etc")


def files_below(root: Path, patterns: Sequence[str]) -> list[Path]:
    found = []
    for pattern in patterns:
        for top in root.glob(pattern):
            for folder, _, names in os.walk(top):
                found += [Path(folder, name) for name in names]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def test_listing_fetches_little_and_python_runs_without_the_registry(
    big_image: ConvertedImage, registry: RegistryServer, tmp_path: Path
):
    with (
        running_registry(registry.storage.parent) as own,
        counting_proxy(own.host) as proxy,
        mounted(
            big_image.name_at(proxy.host),
            tmp_path / "mnt",
            *("--cache-dir", tmp_path / "cache", "--prefetch", "none"),
        ) as mount,
    ):
        names = output("ls", mount.path).split()
        assert {"bin", "odd", "second", "usr"} <= set(names)
        counted, fetched = proxy.received_bytes, mount.totals()["fetched_bytes"]
        assert 0 < fetched <= counted < LISTING_SHARE * big_image.blob_bytes

        assert output("chroot", mount.path, *NUMPY) == "45\n"
        fetched = mount.totals()["fetched_bytes"]
        assert fetched <= proxy.received_bytes < big_image.blob_bytes / 2

        own.stop()
        forget_pages(files_below(mount.path, READ_BY_NUMPY))
        before = mount.status()["fuse"]["read_bytes"]
        assert output("chroot", mount.path, *NUMPY) == "45\n"
        status = mount.status()
        assert status["fuse"]["read_bytes"] > before + 1_000_000, "the kernel had it all"
        assert status["totals"]["fetched_bytes"] == fetched
        assert status["totals"]["errors"] == 0


def test_what_is_not_cached_fails_without_the_registry_and_comes_back_with_it(
    big_image: ConvertedImage, registry: RegistryServer, tmp_path: Path
):
    with (
        running_registry(registry.storage.parent) as own,
        counting_proxy(own.host) as proxy,
        mounted(
            big_image.name_at(proxy.host),
            tmp_path / "mnt",
            *("--cache-dir", tmp_path / "cache", "--timeout", "2s"),
        ) as mount,
    ):
        large = mount.path / "odd/contents/large"
        own.stop()
        with pytest.raises(OSError, match="Input/output error"):
            large.read_bytes()
        assert "odd" in os.listdir(mount.path)
        assert mount.failures()
        assert proxy.host in mount.log()
        proxy.server = registry.host
        assert read_in_the_end(large) == images.noise(12 << 20)


def read_in_the_end(path: Path) -> bytes:
    """Read a file whose last failure may still be remembered, for a moment."""
    for _ in range(300):
        with contextlib.suppress(OSError):
            return path.read_bytes()
        time.sleep(0.1)
    raise AssertionError(f"{path} still cannot be read")


def chunk_sizes(image: ConvertedImage) -> dict[str, int]:
    """Length of each chunk's frame, by the digest that names it in the cache."""
    sizes = {}
    for number, path in enumerate(image.blobs):
        parts = take_apart(path.read_bytes(), image.annotations(number))
        for frame, digest in zip(parts.frames, parts.digests, strict=True):
            sizes[digest.hex()] = frame.end - frame.start
    return sizes


def test_a_killed_daemon_leaves_a_cache_that_is_used_and_not_believed(
    big_image: ConvertedImage, kernel_view: Mapping[bytes, Facts], tmp_path: Path
):
    cache, directory = tmp_path / "cache", tmp_path / "mnt"
    with mounted(big_image.name, directory, "--cache-dir", cache) as mount:
        readers = [
            subprocess.Popen(
                ["grep", "-rc", "never to be found", directory / folder],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for folder in ("usr", "odd", "var")
        ]
        try:
            mount.wait_until(lambda totals: totals["fetched_bytes"] > ENOUGH_BYTES)
        finally:
            mount.kill()
            ends = [reader.wait(COMMAND_WITHIN_S) for reader in readers]
        assert GREP_FAILED in ends, "nobody was reading any more"
        assert mount.status()["state"] == "dead"
        lazyfs("umount", directory)

    kept = sorted((cache / "chunks").rglob("*.data"))
    assert len(kept) > len(DAMAGES)
    for path, damage in zip(kept, DAMAGES, strict=False):
        data = path.read_bytes()
        path.write_bytes(damage(data))
    sizes = chunk_sizes(big_image)
    saved = sum(sizes.get(path.stem, 0) for path in kept[len(DAMAGES) :])
    assert saved > ENOUGH_BYTES / 4

    with mounted(big_image.name, directory, "--cache-dir", cache) as mount:
        shown = look(directory)
        totals = mount.totals()
        assert totals["fetched_bytes"] <= big_image.blob_bytes - saved + SLACK_BYTES
        assert totals["verification_failures"] > 0
        assert totals["errors"] == 0
        assert "rotten" in mount.log()
        assert not any((cache / "tmp").iterdir())
    assert_same(shown, kernel_view)


MOUNT_AND_READ = """
set -eu
"$PYTHON" -m lazyfs mount --mkdir --cache-dir cache "$IMAGE" mnt
trap '"$PYTHON" -m lazyfs umount mnt' EXIT
sha256sum mnt/odd/contents/large
stat --format '%u %a' mnt/odd/inodes/owner-65536
"""


def test_without_root_from_a_folder(big_image: ConvertedImage):
    with nobody() as user:
        name = f"oci:{user.folder}/images:lazy"
        lazyfs("convert", "--quiet", big_image.name, name)
        done = user.run("sh", "-c", MOUNT_AND_READ, IMAGE=name, PYTHON=sys.executable)
        assert done.returncode == 0, done.stderr
        digest, _, owner_and_mode = done.stdout.partition(" ")
        assert digest == hashlib.sha256(images.noise(12 << 20)).hexdigest()
        assert owner_and_mode.splitlines()[1] == "65536 644"
        assert not list((user.home / "mnt").iterdir())
        assert not list((user.home / "lazyfs").iterdir()), "a runtime folder was left"
