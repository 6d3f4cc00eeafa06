"""A tiny image goes through the matrix of the benchmarks, over a fast line."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.matrix import images
from benchmarks.matrix.images import MatrixImage, matrix_image
from benchmarks.matrix.peers import read_peers
from benchmarks.matrix.plan import Cell, Item
from benchmarks.matrix.runner import measure
from benchmarks.matrix.workloads import Workload
from benchmarks.shaped import shaped_line
from benchmarks.system import mounts_below
from lazyfs.convert.options import DEFAULT_CHUNK_BYTES
from tests.support.images import TAG, noise, pack, run, write, write_layout
from tests.support.registry_server import running_registry

pytestmark = pytest.mark.mount

CELL = Cell(2, 1000)
PEER = """
about = "a copy of the tree"
needs = ["sh"]
once = "touch {folder}/once"
start = "test -e {folder}/once && cp -r TREE/. {root}"
stop = "rm -rf {root}/*"
"""


def read_all(root: Path) -> None:
    assert (root / "large").stat().st_size == len((root / "large").read_bytes()) == 1 << 20


def fail(root: Path) -> None:
    (root / "not there").read_bytes()


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    write(folder / "tree/large", noise(1 << 20))
    write_layout(folder / "layout", [pack(folder / "tree", folder / "layer.tar.gz")])
    with running_registry(folder / "registry") as server:
        tar = f"{server.host}/tiny:tar"
        options = ("--quiet", "--dest-tls-verify=false")
        run("skopeo", "copy", *options, f"oci:{folder}/layout:{TAG}", f"docker://{tar}")
        seekable = f"{server.host}/tiny:seekable"
        run(sys.executable, "-m", "lazyfs", "convert", "--quiet", tar, seekable)
        yield server, folder


@pytest.mark.parametrize("name", ["fuse", "pull-unpack", "pull-erofs", "copy"])
def test_each_contender_comes_to_figures_and_leaves_nothing(registry, tmp_path, name):
    server, folder = registry
    works = [Workload("read", read_all), Workload("fail", fail)]
    write(tmp_path / "peers/copy.toml", PEER.replace("TREE", f"{folder}/tree").encode())
    image = MatrixImage("tiny", "tiny:tar", "tiny:seekable", 0, 0)
    with shaped_line(CELL.line, server.host) as line:
        what = (image, line, server.host, read_peers(tmp_path / "peers"), tmp_path)
        good, bad = measure(Item(CELL, 0, "tiny", name), works, *what)
    assert (good.workload, good.contender, good.error) == ("read", name, "")
    assert good.total_s > 0
    if name != "copy":
        assert good.fetched_bytes > 1 << 20
        assert good.requests > 2
    assert "not there" in bad.error
    assert not mounts_below(tmp_path)
    assert not os.path.exists(tmp_path / "tiny" / name)


def test_a_peer_that_cannot_be_made_ready_is_no_end_of_the_run(registry, tmp_path):
    server, folder = registry
    peer = PEER.replace("touch {folder}/once", "echo no such program >&2; false")
    write(tmp_path / "peers/copy.toml", peer.replace("TREE", f"{folder}/tree").encode())
    image = MatrixImage("tiny", "tiny:tar", "tiny:seekable", 0, 0)
    with shaped_line(CELL.line, server.host) as line:
        what = (image, line, server.host, read_peers(tmp_path / "peers"), tmp_path)
        (sample,) = measure(Item(CELL, 0, "tiny", "copy"), [Workload("read", read_all)], *what)
    assert "no such program" in sample.error
    assert not os.path.exists(tmp_path / "tiny/copy")


def test_an_image_in_chunks_of_another_size_is_made_anew(registry, tmp_path, monkeypatch):
    server, _ = registry
    made = []

    def make(tree: Path) -> None:
        made.append(tree)
        write(tree / "file", noise(1 << 20))

    monkeypatch.setattr(images, "MADE", tmp_path / "made")
    monkeypatch.setitem(images.MAKERS, "small", make)
    first = matrix_image("small", server.host, tmp_path)
    note, profile = tmp_path / "matrix-small.json", tmp_path / "matrix-small-profile.json"
    profile.touch()
    assert matrix_image("small", server.host, tmp_path) == first
    assert profile.exists()

    kept = json.loads(note.read_text())
    note.write_text(json.dumps(kept | {"chunk_bytes": 2 * DEFAULT_CHUNK_BYTES, "tar_bytes": 1}))
    assert matrix_image("small", server.host, tmp_path) == first
    assert not profile.exists()
    assert json.loads(note.read_text()) == kept
    assert len(made) == 1, "the layer itself is kept"
