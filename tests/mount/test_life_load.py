"""What many readers, and a layer that does not come, do to the others."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.fuse.protocol import MAX_BACKGROUND
from lazyfs.fuse.server import WAITING_AT_ONCE
from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.lazy_mounts import LazyMount, mounted
from tests.support.mounting import COMMAND_WITHIN_S, needs_fuse
from tests.support.registry_server import RegistryServer
from tests.support.soak import sample
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

SICK_FILES, WELL_FILES = 300, 20
SIZE = 64 << 10
WELL_FROM = 1000
"""Other bytes: a chunk that two layers have in common is fetched once, from either."""
HOLDERS = 200
"""More than any limit on requests under way used to be."""
MAX_ASKING = 300

MANY = 1200
MOST_RSS_BYTES = 256 << 20
MOST_FILES = 600

READ_AT_ONCE = """
import json, os, random, sys, threading
names = json.load(sys.stdin)
threading.stack_size(256 << 10)
right = []
def read(name, seed):
    with open(name, "rb", buffering=0) as file:
        data = file.read()
    right.append(data == random.Random(seed).randbytes(len(data)) and len(data) > 0)
threads = [threading.Thread(target=read, args=item) for item in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(0 if right == [True] * len(names) else 1)
"""


def content(seed: int, size: int = SIZE) -> bytes:
    """Nothing that compresses: what is short comes along when a layer is opened."""
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def image(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "layers"
    sick = {f"sick/{number:03}": content(number) for number in range(SICK_FILES)}
    well = {f"well/{number:03}": content(WELL_FROM + number) for number in range(WELL_FILES)}
    write_layout(layout, "tar", [sick, well])
    options = ("--chunk-size", "64KiB")
    return push_and_convert(layout, "tar", "layers", registry, work_folder / "raw-l", *options)


@pytest.fixture
def proxy(registry: RegistryServer) -> Iterator[FaultyProxy]:
    with faulty_proxy(registry.host, seed=1) as proxy:
        proxy.quiet = True
        yield proxy
        proxy.held = None


def readers(mount: LazyMount, folder: str, count: int, first: int = 0) -> "subprocess.Popen[str]":
    """A process that reads so many files at once; its status says whether all was right."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ_AT_ONCE], stdin=subprocess.PIPE, text=True
    )
    names = [(f"{mount.path}/{folder}/{number:03}", first + number) for number in range(count)]
    assert process.stdin is not None
    process.stdin.write(json.dumps(names))
    process.stdin.close()
    return process


def wait_for_requests(mount: LazyMount, count: int) -> None:
    for _ in range(MAX_ASKING):
        if mount.status()["fuse"]["in_flight"] >= count:
            return
    raise AssertionError(f"only {mount.status()['fuse']['in_flight']} requests wait")


def test_a_layer_that_does_not_come_leaves_the_others_alone(
    image: ConvertedImage, proxy: FaultyProxy, tmp_path: Path
):
    sick = image.manifest["layers"][0]["digest"].encode()
    options = ("--cache-dir", tmp_path / "cache", "--timeout", "0")
    with mounted(image.name_at(proxy.host), tmp_path / "mnt", *options) as mount:
        for folder in ("sick", "well"):
            assert len(os.listdir(mount.path / folder)) > 0
        proxy.held = sick
        waiting = readers(mount, "sick", SICK_FILES)
        wait_for_requests(mount, HOLDERS)
        quick = readers(mount, "well", WELL_FILES, WELL_FROM)
        assert quick.wait(COMMAND_WITHIN_S) == 0
        assert waiting.poll() is None
        assert mount.status()["fuse"]["in_flight"] >= HOLDERS
        proxy.held = None
        assert waiting.wait(COMMAND_WITHIN_S) == 0
        assert mount.failures() == {}


@pytest.fixture(scope="module")
def many(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "many"
    files = {f"many/{number:03}": content(number, SIZE // 4) for number in range(MANY)}
    write_layout(layout, "tar", [files])
    options = ("--chunk-size", "16KiB")
    return push_and_convert(layout, "tar", "many", registry, work_folder / "raw-m", *options)


def test_what_thousands_of_readers_cost_is_bounded(
    many: ConvertedImage, proxy: FaultyProxy, tmp_path: Path
):
    options = ("--cache-dir", tmp_path / "cache", "--timeout", "0")
    with mounted(many.name_at(proxy.host), tmp_path / "mnt", *options) as mount:
        assert len(os.listdir(mount.path / "many")) == MANY
        proxy.held = many.manifest["layers"][0]["digest"].encode()
        waiting = readers(mount, "many", MANY)
        wait_for_requests(mount, MAX_BACKGROUND)
        assert mount.status()["fuse"]["in_flight"] <= WAITING_AT_ONCE
        assert not os.path.lexists(mount.path / "absent")  # what is no read of pages gets through
        proxy.held = None
        samples = []
        while waiting.poll() is None:
            samples.append(sample(mount.pid))
            mount.status()
        assert waiting.returncode == 0
        assert max(found.rss_bytes for found in samples if found) < MOST_RSS_BYTES
        assert max(found.files for found in samples if found) < MOST_FILES
        assert mount.failures() == {}
