"""Unpacked layers against the kernel, fsck.erofs and veritysetup; full disks; peak memory."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import verity_oracle
from tests.support.erofs_files import facts_of_tree, make_image, make_tree, packaged_mkfs
from tests.support.in_process import run_lazyfs
from tests.support.layer_builder import Layer, raw, seekable, spec_seekable, zstd
from tests.support.layer_layouts import Layout, noise, tree_image, write_image
from tests.support.mounting import needs_fuse
from tests.support.overlay_oracle import mount, mount_erofs, run

pytestmark = [pytest.mark.mount, needs_fuse]

WITHIN_S = 300
FORMS: dict[str, Callable[[bytes], Layer]] = {
    "containerd": seekable,
    "spec": spec_seekable,
    "raw": raw,
    "zstd": zstd,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    make_tree(root, longest_name=200)
    (root / "large").write_bytes(noise(3_000_000))
    return root


@pytest.fixture(scope="module", params=["plain", "lz4"])
def image(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """By mkfs.erofs, of a tree with a bit of everything."""
    path = tmp_path_factory.mktemp("image") / "made.erofs"
    make_image(packaged_mkfs(), tree, path, *(["-zlz4"] if request.param == "lz4" else []))
    return path.read_bytes()


def unpacked(*words: object) -> list[dict]:
    done = run_lazyfs("unpack", *words, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)["layers"]
    assert isinstance(layers, list)
    return layers


@pytest.mark.parametrize("choice", ["layer", "containerd", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_mounts_it(form: str, choice: str, image: bytes, tree: Path, tmp_path: Path):
    layout = write_image(tmp_path / "image", [FORMS[form](image)])
    (made,) = unpacked(layout.name, tmp_path / "out", "--verity", choice)
    path = Path(made["path"])
    run("fsck.erofs", path)
    if made["rootHash"]:
        root = bytes.fromhex(made["rootHash"])
        assert verity_oracle.accepts(path, made["hashOffset"], root)
    with mount_erofs(path, tmp_path / "mnt") as point:
        found, wanted = facts_of_tree(point), facts_of_tree(tree)
    assert found.keys() == wanted.keys()
    for name, facts in wanted.items():
        for key in ("content", "target", "mode", "uid", "gid", "xattrs"):
            assert found[name].get(key) == facts.get(key), name
    assert run_lazyfs("verify", layout.name, "--quiet").returncode == 0
    assert run_lazyfs("verify", f"erofs:{path}", "--quiet").returncode == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("choice", ["layer", "containerd"])
def test_a_full_disk(form: str, choice: str, tmp_path: Path):
    """One line, and the same command goes on when there is room."""
    layer = FORMS[form](tree_image(8_000_000))
    layout = write_image(tmp_path / "image", [layer])
    with small_disk(tmp_path / "disk", "6M") as disk:
        done = run_lazyfs("unpack", layout.name, disk / "out", "--verity", choice)
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if not line.startswith("layer 1/1: ")]
        (line,) = errors
        assert line.startswith("lazyfs unpack: [Errno 28] No space left on device: ")
        assert str(disk) in line
        assert not list(disk.rglob("layer.erofs"))
        run("mount", "-o", "remount,size=60M", disk)
        (made,) = unpacked(layout.name, disk / "out", "--verity", choice)
        if form == "containerd":
            assert made["resumedChunks"] > 0
        assert Path(made["path"]).read_bytes()[: len(layer.image)] == layer.image


def test_verify_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = write_image(tmp_path / "image", [seekable(tree_image(8_000_000))])
    with small_disk(tmp_path / "disk", "2M") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        done = run_lazyfs("verify", layout.name, "--quiet")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "No space left on device" in line
        assert list(disk.iterdir()) == []


@contextlib.contextmanager
def small_disk(point: Path, size: str) -> Iterator[Path]:
    with mount(point, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield point


MEASURED = """
import sys
from pathlib import Path
from lazyfs.cli.main import main
assert main(sys.argv[1:]) == 0
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak_kib(*words: object) -> int:
    """The most memory that a command had, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words), "--quiet"],
        check=True,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("command", ["unpack", "verify"])
def test_memory_does_not_grow_with_the_layer(command: str, tmp_path: Path):
    def peak(megabytes: int) -> int:
        layer = seekable(tree_image(megabytes * 1_000_000), chunk=1 << 20)
        layout: Layout = write_image(tmp_path / str(megabytes), [layer])
        out = [tmp_path / f"out-{megabytes}"] if command == "unpack" else []
        return peak_kib(command, layout.name, *out)

    small, large = peak(60), peak(240)
    assert large < small + 40 * 1024, f"{small} and {large} KiB, with 180 MB more in the layer"
