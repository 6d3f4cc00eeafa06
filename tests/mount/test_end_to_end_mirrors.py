"""A mount whose image comes from a mirror first: it lies, it dies, it is the last one left."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.fake_registry import mirror_table, write_hosts
from tests.support.lazy_mounts import LazyMount, lazyfs, mounted
from tests.support.mounting import needs_fuse
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

FILES = {f"d/{n}": bytes((n * k) % 251 for k in range(50_000)) for n in range(40)}
CHUNK = ("--chunk-size", "64KiB")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[tuple[ConvertedImage, RegistryServer]]:
    write_layout(tmp_path / "layout", "tar", [FILES])
    with running_registry(tmp_path / "registry") as registry:
        yield (
            push_and_convert(tmp_path / "layout", "tar", "app", registry, tmp_path / "raw", *CHUNK),
            registry,
        )


def read_all(mount: LazyMount) -> None:
    for name, content in FILES.items():
        assert (mount.path / name).read_bytes() == content


def hosts_of(mount: LazyMount) -> dict[str, dict]:
    return {host["role"]: host for host in mount.status()["hosts"]}


def options(tmp_path: Path, registry: RegistryServer, mirror: str) -> tuple[str | Path, ...]:
    [folder] = write_hosts(tmp_path, registry.host, mirror_table(f"http://{mirror}"))
    return ("--hosts-dir", folder, "--cache-dir", tmp_path / "cache", "--timeout", "10s")


def test_a_mirror_that_lies_is_found_out_and_named(image, tmp_path):
    converted, registry = image
    shutil.copytree(tmp_path / "registry/storage", tmp_path / "mirror/storage")
    with running_registry(tmp_path / "mirror") as mirror:
        digest = converted.manifest["layers"][0]["digest"]
        path = mirror.blob_path(digest)
        data = bytearray(path.read_bytes())
        table = int(converted.annotations(0)["dev.containerd.erofs.zstd.chunk_table_offset"])
        for offset in range(1000, table, 20_000):
            data[offset] ^= 1
        path.write_bytes(data)
        with mounted(
            converted.name, tmp_path / "mnt", *options(tmp_path, registry, mirror.host)
        ) as mount:
            assert hosts_of(mount)["mirror"]["state"] == "ok"
            read_all(mount)
            found = hosts_of(mount)
            assert found["mirror"]["state"] == "distrusted"
            assert found["mirror"]["host"] == mirror.host
            assert "wrong bytes" in found["mirror"]["last_problem"]
            assert found["registry"]["state"] == "ok"
            assert mount.totals()["errors"] == 0
            assert mount.totals()["verification_failures"] >= 1
            assert f"{mirror.host}: gave a wrong answer" in mount.log()
            shown = lazyfs("status", mount.path).stdout
            assert f"{mirror.host} (mirror): distrusted" in shown


def test_a_chunk_table_that_a_mirror_gives_wrong(image, tmp_path):
    converted, registry = image
    shutil.copytree(tmp_path / "registry/storage", tmp_path / "mirror/storage")
    with running_registry(tmp_path / "mirror") as mirror:
        path = mirror.blob_path(converted.manifest["layers"][0]["digest"])
        path.write_bytes(bytes(path.stat().st_size))
        with mounted(
            converted.name, tmp_path / "mnt", *options(tmp_path, registry, mirror.host)
        ) as mount:
            read_all(mount)
            assert hosts_of(mount)["mirror"]["state"] == "distrusted"
            assert mount.totals()["errors"] == 0


def test_a_mirror_that_dies_and_a_registry_that_died_before(image, tmp_path):
    converted, registry = image
    shutil.copytree(tmp_path / "registry/storage", tmp_path / "mirror/storage")
    with running_registry(tmp_path / "mirror") as mirror:
        words = options(tmp_path, registry, mirror.host)
        with mounted(converted.name, tmp_path / "mnt", *words) as mount:
            assert (mount.path / "d/1").read_bytes() == FILES["d/1"]
            mirror.stop()
            read_all(mount)
            assert mount.totals()["errors"] == 0
            assert hosts_of(mount)["mirror"]["failures"] >= 1
    registry.stop()
    with running_registry(tmp_path / "mirror") as mirror:
        words = options(tmp_path, registry, mirror.host)
        with mounted(converted.name, tmp_path / "mnt2", *words) as mount:
            read_all(mount)
            assert mount.totals()["errors"] == 0
