"""Images of every kind, converted and mounted, are entry by entry what ``umoci`` unpacks of them.

Other tools accept them too, and the kernel shows the same of them. In small;
``make round-trips`` does it with images as large as their kind is, in both layouts.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lazyfs.seekable.mediatypes import Layout
from tests.support.images import TAG, run, write_layout
from tests.support.lazy_mounts import convert, mounted
from tests.support.mounting import needs_fuse
from tests.support.other_tools import accepted_images
from tests.support.overlay_oracle import erofs_overlay, mount_erofs
from tests.support.sample_images import LARGE_SAMPLES, SAMPLES, for_umoci
from tests.support.trees import MADE_BY_TAR, assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

FULL = os.environ.get("LAZYFS_ROUND_TRIPS") == "full"
ALL = SAMPLES | (LARGE_SAMPLES if FULL else {})


def single(raw: list[Path], folder: Path) -> AbstractContextManager[Path]:
    return mount_erofs(raw[0], folder / "single")


@pytest.mark.parametrize("name", ALL)
def test_a_mount_shows_what_umoci_unpacks(name: str, tmp_path: Path):
    making = tmp_path / "making"
    making.mkdir()
    layers = ALL[name](making, FULL)
    write_layout(tmp_path / "in", layers)
    write_layout(tmp_path / "umoci", [for_umoci(layer, making) for layer in layers])
    run("umoci", "unpack", "--image", f"{tmp_path}/umoci:{TAG}", tmp_path / "bundle")
    wanted = look(tmp_path / "bundle/rootfs")
    layouts = list(Layout) if FULL else [list(Layout)[len(name) % len(Layout)]]
    for layout in layouts:
        image = f"oci:{tmp_path}/{layout}:x"
        result = convert(f"oci:{tmp_path}/in:{TAG}", image, "--layout", layout)
        with mounted(image, tmp_path / "mnt", "--cache-dir", tmp_path / f"cache-{layout}") as mount:
            assert_same(look(mount.path), wanted, MADE_BY_TAR)
            totals = mount.totals()
        assert totals["errors"] == 0
        raw = accepted_images(tmp_path / layout, "x", tmp_path / f"tools-{layout}")
        kernel = erofs_overlay(raw, tmp_path / "overlay") if len(raw) > 1 else single(raw, tmp_path)
        with kernel as tree:
            assert_same(look(tree), wanted, MADE_BY_TAR)
        print(  # noqa: T201 - the report of a long run
            f"{name}, {layout}: {len(result['images'][0]['layers'])} layers, "
            f"{len(wanted)} entries, {totals['fetched_bytes']} bytes fetched"
        )
