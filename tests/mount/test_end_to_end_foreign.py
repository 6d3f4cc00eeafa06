"""Images that others wrote: containerd's converter, and ``mkfs.erofs`` with ``zstd`` around it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.images import LayerFile, digest_of, noise, run, write, write_layout
from tests.support.lazy_mounts import convert, mounted
from tests.support.mounting import needs_fuse
from tests.support.overlay_oracle import decode, erofs_overlay
from tests.support.trees import Facts, assert_same, look

pytestmark = [pytest.mark.mount, needs_fuse]

EROFS = "application/vnd.erofs.layer.v1"
EROFS_ZSTD = f"{EROFS}+zstd"
CONTAINERD = Path(__file__).parents[1] / "data/containerd-seekable"
VERIFY = ("always", "fetch", "off")


@pytest.fixture(scope="module")
def below_containerds(tmp_path_factory) -> Path:
    """A layer with what that layer takes away and replaces."""
    folder = Path(tmp_path_factory.mktemp("below"))
    for name in ("etc/rm/inside", "etc/kept", "gone/inside", "opq/old", "opq/new"):
        write(folder / "tree" / name, b"old")
    run("mkfs.erofs", folder / "image", folder / "tree")
    return folder / "image"


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("name", ["verity4096", "verity512", "plain"])
def test_layers_of_containerds_converter(
    below_containerds: Path, name: str, verify: str, tmp_path: Path
):
    said = json.loads((CONTAINERD / "layers.json").read_text())[name]
    blob = CONTAINERD / f"{name}.blob"
    size = blob.stat().st_size
    layers = [
        layer_of(below_containerds),
        LayerFile(blob, digest_of(blob), size, said["diff_id"], EROFS_ZSTD, said["annotations"]),
    ]
    image = decode(blob, tmp_path / "raw")
    assert digest_of(image) == said["diff_id"]
    shown = check(layers, [below_containerds, image], tmp_path, f"--verify={verify}").shown
    assert b"etc/kept" in shown
    assert not {b"etc/rm", b"gone", b"opq/old"} & shown.keys()


@pytest.fixture(scope="module")
def made_by_mkfs(tmp_path_factory) -> list[Path]:
    """Two layers, the upper one compressed, with a whiteout and an opaque directory."""
    folder = tmp_path_factory.mktemp("mkfs")
    lower, upper = folder / "lower", folder / "upper"
    for number in range(200):
        write(lower / f"many/{number}", b"%d" % number * number)
    write(lower / "large", noise(3 << 20))
    write(lower / "hidden/below", b"x")
    write(lower / "gone", b"x")
    os.setxattr(lower / "large", "user.kept", b"yes")
    write(upper / "hidden/new", b"y")
    os.setxattr(upper / "hidden", "trusted.overlay.opaque", b"y")
    os.mknod(upper / "gone", 0o020000, os.makedev(0, 0))
    write(upper / "text", b"compresses very well\n" * 50_000)
    write(upper / "many/7", b"replaced")
    run("mkfs.erofs", "-x1", folder / "0.erofs", lower)
    run("mkfs.erofs", "-zlz4hc", folder / "1.erofs", upper)
    return [folder / "0.erofs", folder / "1.erofs"]


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("form", ["raw", "zstd"])
def test_layers_without_a_chunk_table(
    made_by_mkfs: list[Path], form: str, verify: str, tmp_path: Path
):
    layers = []
    for number, image in enumerate(made_by_mkfs):
        blob, media_type = image, EROFS
        if form == "zstd":
            blob, media_type = tmp_path / f"{number}.zst", EROFS_ZSTD
            run("zstd", "-q", image, "-o", blob)
        layers.append(
            LayerFile(blob, digest_of(blob), blob.stat().st_size, digest_of(image), media_type)
        )
    said = check(layers, made_by_mkfs, tmp_path, f"--verify={verify}").layers
    lazy = form == "raw" and verify == "off"
    assert [layer["lazy"] for layer in said] == [lazy, lazy]
    assert all("whole" in layer["why"] or lazy for layer in said)


def test_layers_of_mkfs_wrapped_by_convert(made_by_mkfs: list[Path], tmp_path: Path):
    write_layout(tmp_path / "raw", [layer_of(image) for image in made_by_mkfs], "raw")
    result = convert(f"oci:{tmp_path}/raw:raw", f"oci:{tmp_path}/layout:x", "--chunk-size=64KiB")
    wrapped = result["images"][0]["layers"]
    assert [layer["diffID"] for layer in wrapped] == [digest_of(image) for image in made_by_mkfs]
    assert all(layer["lazy"] for layer in compare(made_by_mkfs, tmp_path).layers)


class Seen(NamedTuple):
    """What a mount showed."""

    shown: Mapping[bytes, Facts]
    layers: list[dict]
    """Their status."""


def layer_of(image: Path) -> LayerFile:
    """A raw image as a layer."""
    digest = digest_of(image)
    return LayerFile(image, digest, image.stat().st_size, digest, EROFS)


def check(layers: Sequence[LayerFile], raw: Sequence[Path], tmp_path: Path, *options: str) -> Seen:
    """Mount some layers and compare what is seen with the kernel's view of their images."""
    write_layout(tmp_path / "layout", layers, "x")
    return compare(raw, tmp_path, *options)


def compare(raw: Sequence[Path], tmp_path: Path, *options: str) -> Seen:
    """Compare the image in ``layout`` with the kernel's view of its raw layers."""
    options = (*options, "--cache-dir", os.fspath(tmp_path / "cache"))
    with mounted(f"oci:{tmp_path}/layout:x", tmp_path / "mnt", *options) as mount:
        shown = look(mount.path)
        status = mount.status()
    with erofs_overlay(raw, tmp_path / "overlay") as wanted:
        assert_same(shown, look(wanted))
    assert status["totals"]["errors"] == 0
    return Seen(shown, status["layers"])
