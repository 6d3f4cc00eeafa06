"""Small forms of what ``benchmarks.scale`` measures: many layers, and a file of 100 GB."""

import os
from pathlib import Path

import pytest

from benchmarks.system import memory_of
from tests.support.converted import push
from tests.support.images import TAG, write_layout
from tests.support.large_images import (
    CHUNK,
    huge_image,
    huge_layer,
    many_layers,
    mark_at,
    path_of,
)
from tests.support.lazy_mounts import convert, mounted
from tests.support.mounting import needs_fuse
from tests.support.registry_server import RegistryServer, running_registry

pytestmark = [pytest.mark.mount, needs_fuse]

LAYERS, FILES = 60, 50
HUGE = 100 * 10**9 // CHUNK * CHUNK
MARK_EVERY = 1024 * CHUNK
MEMORY_LIMIT = 100 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def many(server: RegistryServer, tmp_path_factory) -> str:
    layout = many_layers(tmp_path_factory.mktemp("many") / "image", LAYERS, FILES)
    convert(f"oci:{layout}:{TAG}", f"{server.host}/many:lazy")
    return f"{server.host}/many:lazy"


@pytest.fixture(scope="module")
def huge(server: RegistryServer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("huge")
    layer = huge_layer(huge_image(folder, HUGE, MARK_EVERY), folder / "blob", verity=False)
    write_layout(folder / "layout", [layer])
    push(folder / "layout", TAG, f"{server.host}/huge:lazy")
    return f"{server.host}/huge:lazy"


def found_below(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    }


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_many_layers_come_together(many, driver, tmp_path):
    options = ("--driver", driver, "--cache-dir", tmp_path / "cache")
    with mounted(many, tmp_path / "mnt", *options) as mount:
        wanted = {path_of(layer, number) for layer in range(LAYERS) for number in range(FILES)}
        assert found_below(mount.path) == wanted
        for layer in range(0, LAYERS, 7):
            path = path_of(layer, layer % FILES)
            assert (mount.path / path).read_text() == f"{path}\n"
        assert memory_of(mount.pid)["rss_bytes"] < MEMORY_LIMIT


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_a_huge_file_costs_what_is_read_of_it(huge, driver, tmp_path):
    options = ("--driver", driver, "--cache-dir", tmp_path / "cache")
    last = (HUGE - 1) // MARK_EVERY * MARK_EVERY
    with mounted(huge, tmp_path / "mnt", *options) as mount:
        with (mount.path / "huge").open("rb", 0) as file:
            assert os.fstat(file.fileno()).st_size == HUGE
            for offset in (0, last // 2 // MARK_EVERY * MARK_EVERY, last):
                assert os.pread(file.fileno(), 4096, offset) == mark_at(offset).ljust(4096, b"\0")
            assert os.pread(file.fileno(), 4096, HUGE - 100) == bytes(100)
        fetched = mount.totals()["fetched_bytes"]
        assert fetched < 4 << 20, "more than the chunk table and some chunks of zeros"
        assert memory_of(mount.pid)["rss_bytes"] < MEMORY_LIMIT
