"""``lazyfs unpack``: whole layers, every byte right, and never a partial one under its name."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support import verity_oracle
from tests.support.counting_proxy import CountingProxy, counting_proxy
from tests.support.in_process import run_lazyfs
from tests.support.layer_builder import (
    Layer,
    directory,
    erofs_image,
    raw,
    seekable,
    zstd,
)
from tests.support.layer_forms import FORMS
from tests.support.layer_layouts import (
    Layout,
    content,
    flip,
    noise,
    tree_image,
    write_image,
)
from tests.support.registry_server import running_registry

BLOCK = 4096
WITHIN_S = 120
SALT = bytes(32)


@pytest.fixture(scope="module")
def image() -> bytes:
    return tree_image()


@pytest.fixture(scope="module")
def large() -> bytes:
    """Of 20 MB that do not compress: more than sockets hold, so that an interrupt comes early."""
    return tree_image(20_000_000)


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    return run_lazyfs("unpack", *words)


def unpacked(*words: object) -> list[dict]:
    """What the summary of a run that must work says of each layer."""
    done = command(*words, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    layers = json.loads(done.stdout)["layers"]
    assert isinstance(layers, list)
    return layers


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def sidecar(path: Path) -> dict:
    text = path.with_name(f"{path.name}.dmverity").read_text()
    document = json.loads(text)
    assert text == json.dumps(document, indent=2) + "\n"
    assert list(document) == ["roothash", "hashoffset"]
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("form", FORMS)
def test_layers_as_they_are(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer, raw(image)])
    out = tmp_path / "out"
    first, second = unpacked(layout.name, out)
    digest = layout.manifest["layers"][0]["digest"]
    path = out / f"1-{digest.removeprefix('sha256:')[:12]}/layer.erofs"
    assert first["path"] == str(path)
    assert (first["outcome"], first["digest"]) == ("unpacked", digest)
    whole = content(layer)
    found = path.read_bytes()
    assert found[: len(whole)] == whole
    assert first["size"] == len(found)
    if layer.tree.length:
        said = sidecar(path)
        block = 512 if form == "small blocks" else BLOCK
        assert said["hashoffset"] % block == 0
        assert said["hashoffset"] - len(layer.image) < block
        assert verity_oracle.accepts(path, said["hashoffset"], bytes.fromhex(said["roothash"]))
        assert (first["rootHash"], first["hashOffset"]) == (said["roothash"], said["hashoffset"])
        if "spec" not in form:
            payload = layer.blob[layer.tree.offset : layer.tree.end]
            assert found[said["hashoffset"] :] == payload
        assert len(found) == said["hashoffset"] + layer.tree.length
    else:
        assert first["rootHash"] is None
        assert len(found) == len(whole)
    extra = {f"{path.parent.name}/layer.erofs.dmverity"} if layer.tree.length else set()
    names = {f"{Path(part['path']).parent.name}/layer.erofs" for part in (first, second)}
    assert files_in(out) == names | extra
    # A second run checks what is there, and leaves it.
    before = path.stat()
    again, _ = unpacked(layout.name, out)
    assert again["outcome"] == "kept"
    assert path.stat() == before


@pytest.mark.parametrize("form", FORMS)
def test_a_tree_that_containerd_can_mount(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    (made,) = unpacked(layout.name, tmp_path / "out", "--verity", "containerd")
    path = Path(made["path"])
    said = sidecar(path)
    assert said["hashoffset"] == len(image), "the image has whole blocks"
    found = path.read_bytes()
    assert found[: len(image)] == image
    superblock = found[len(image) :]
    assert superblock[:16] == b"verity\0\0" + bytes([1, 0, 0, 0, 1, 0, 0, 0])
    assert superblock[16:32] != bytes(16), "containerd wants a UUID"
    assert superblock[32:64].rstrip(b"\0") == b"sha256"
    assert superblock[64:72] == BLOCK.to_bytes(4, "little") * 2
    assert int.from_bytes(superblock[72:80], "little") == len(image) // BLOCK
    assert superblock[80:82] == bytes([32, 0])
    assert superblock[88:120] == SALT
    assert verity_oracle.accepts(path, said["hashoffset"], bytes.fromhex(said["roothash"]))
    check_again(form, layout, tmp_path / "out", "containerd")


@pytest.mark.parametrize("form", FORMS)
def test_without_a_tree(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    (made,) = unpacked(layout.name, tmp_path / "out", "--verity", "none")
    assert Path(made["path"]).read_bytes() == image
    assert not Path(made["path"] + ".dmverity").exists()
    check_again(form, layout, tmp_path / "out", "none")


def check_again(form: str, layout: Layout, out: Path, choice: str) -> None:
    """A second run keeps what is there, if anything can prove it."""
    done = command(layout.name, out, "--verity", choice, "--json", "--quiet")
    if form == "spec, no index":  # its digest covers the tree that was taken away
        assert "nothing says what it must be" in done.stderr
    else:
        assert json.loads(done.stdout)["layers"][0]["outcome"] == "kept"


def test_a_tree_over_a_single_block(tmp_path: Path):
    """containerd writes nothing but its superblock; what comes out has whole blocks."""
    image = erofs_image({b"": directory()})
    assert len(image) == BLOCK
    layer = seekable(image)
    cut = replace(
        layer,
        blob=layer.blob[: layer.tree.offset - 4]
        + (512).to_bytes(4, "little")
        + layer.blob[layer.tree.offset : layer.tree.offset + 512],
    )
    for number, one in enumerate((layer, cut)):
        layout = write_image(tmp_path / f"image-{number}", [one])
        assert run_lazyfs("verify", layout.name).returncode == 0
        (made,) = unpacked(layout.name, tmp_path / f"out-{number}")
        assert made["size"] == 2 * BLOCK
        path = Path(made["path"])
        assert verity_oracle.accepts(path, BLOCK, bytes.fromhex(made["rootHash"]))
        assert unpacked(layout.name, tmp_path / f"out-{number}")[0]["outcome"] == "kept"


def test_zeros_are_holes(tmp_path: Path):
    image = bytearray(tree_image())
    image += bytes(20 << 20) + noise(10_000) + bytes(2288)
    for layer in (seekable(bytes(image)), zstd(bytes(image))):
        layout = write_image(tmp_path / "image", [layer])
        (made,) = unpacked(layout.name, tmp_path / f"out-{len(layer.frames)}")
        path = Path(made["path"])
        assert path.read_bytes()[: len(image)] == image
        assert made["diskSize"] == path.stat().st_blocks * 512
        assert made["diskSize"] < 3 << 20 < made["size"]


def test_some_layers(image: bytes, tmp_path: Path):
    layers = [seekable(image, chunk=40960 + 4096 * number) for number in range(12)]
    layout = write_image(tmp_path / "image", layers)
    made = unpacked(layout.name, tmp_path / "out", "--layer", "2", "--layer", "11")
    assert [layer["number"] for layer in made] == [2, 11]
    assert [Path(layer["path"]).parent.name[:3] for layer in made] == ["02-", "11-"]
    assert len(list((tmp_path / "out").iterdir())) == 2


# Interrupted runs


@dataclass
class Killer:
    """Signals a process when so many bytes have come for it."""

    proxy: CountingProxy
    after_bytes: int
    signal: int
    process: "subprocess.Popen[str] | None" = None

    def count(self, length: int) -> None:
        self.proxy.received_bytes += length
        if self.process is not None and self.proxy.received_bytes >= self.after_bytes:
            self.process.send_signal(self.signal)
            self.process = None


@contextmanager
def served(layout: Layout, folder: Path) -> Iterator[str]:
    """The image in a registry; its name without the host."""
    with running_registry(folder) as registry:
        name = f"{registry.host}/app:1"
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"]
        subprocess.run([*copy, layout.name, f"docker://{name}"], check=True, timeout=WITHIN_S)
        yield name


def interrupted(name: str, after_bytes: int, how: int, *words: object) -> tuple[int, str]:
    """Exit status and messages of a run that is ended by a signal."""
    host, _, rest = name.partition("/")
    with counting_proxy(host) as proxy:
        killer = Killer(proxy, after_bytes, how)
        proxy.count = killer.count  # type: ignore[method-assign]
        process = subprocess.Popen(
            [sys.executable, "-m", "lazyfs", "unpack", f"{proxy.host}/{rest}", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        killer.process = process
        _, errors = process.communicate(timeout=WITHIN_S)
        return process.returncode, errors


HEADERS_BYTES = 64 << 10
"""What the answers to all requests of a run may have beside the bodies that they count."""


@pytest.mark.parametrize("form", ["containerd", "no tree", "spec", "raw"])
def test_killed_at_any_point(form: str, large: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](large)
    layout = write_image(tmp_path / "image", [layer])
    (wanted,) = unpacked(layout.name, tmp_path / "wanted")
    chance = random.Random(form)
    resumed = []
    with served(layout, tmp_path / "registry") as name:
        for number in range(4):
            out = tmp_path / f"out-{number}"
            size = len(layer.blob)
            status, _ = interrupted(
                name, chance.randrange(size // 2, size), signal.SIGKILL, out, "--quiet"
            )
            if status == 0:
                continue  # it was quicker
            assert status == -signal.SIGKILL
            assert not list(out.rglob("layer.erofs")), "a partial image under its name"
            with counting_proxy(name.partition("/")[0]) as proxy:
                (made,) = unpacked(f"{proxy.host}/app:1", out)
                if made["resumedChunks"]:
                    assert made["fetchedBytes"] < size
                    assert proxy.received_bytes < made["fetchedBytes"] + HEADERS_BYTES
            resumed.append(made["resumedChunks"])
            path = Path(made["path"])
            assert path.read_bytes() == Path(wanted["path"]).read_bytes()
            assert files_in(out) == files_in(tmp_path / "wanted")
    assert any(resumed)


def test_an_interrupt_says_how_to_go_on(large: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [seekable(large)])
    out = tmp_path / "out"
    with served(layout, tmp_path / "registry") as name:
        status, errors = interrupted(name, len(large) // 2, signal.SIGINT, out, "--quiet")
        assert status == 130
        assert errors.splitlines()[-1] == "lazyfs: interrupted"
        assert "the same command goes on from there" in errors
        assert str(out) in errors
        (made,) = unpacked(name, out)
        assert made["resumedChunks"] > 0
        assert made["fetchedBytes"] < len(large)


def test_a_partial_file_is_not_believed(image: bytes, tmp_path: Path):
    """What an earlier run left has rotted, is of another layer, or is no journal at all."""
    layer = seekable(image)
    layout = write_image(tmp_path / "image", [layer])
    (wanted,) = unpacked(layout.name, tmp_path / "wanted")
    whole = Path(wanted["path"]).read_bytes()
    for name, damage in {
        "rotten chunk": lambda partial, journal: flip(partial, 3 * 65536 + 5),
        "rotten zero": lambda partial, journal: flip(partial, image.index(bytes(50_000)) + 20_000),
        "rotten tree": lambda partial, journal: flip(partial, len(image) + BLOCK),
        "cut short": lambda partial, journal: os.truncate(partial, 100_000),
        "torn record": lambda partial, journal: os.truncate(journal, journal.stat().st_size - 7),
        "no journal": lambda partial, journal: journal.unlink(),
        "no partial": lambda partial, journal: partial.unlink(),
        "another journal": lambda partial, journal: journal.write_bytes(b"lazyfs unpack 0\n"),
        "garbage": lambda partial, journal: journal.write_bytes(noise(1000)),
        "wild indexes": lambda partial, journal: append(journal, b"\xff" * 36),
    }.items():
        out = tmp_path / name.replace(" ", "-")
        partial, journal = leave_partial(layout, out)
        damage(partial, journal)
        (made,) = unpacked(layout.name, out)
        assert Path(made["path"]).read_bytes() == whole, name
        assert files_in(out) == files_in(tmp_path / "wanted")
        if name.startswith(("rotten", "torn", "wild")):
            assert 0 < made["resumedChunks"] <= len(layer.frames)
            assert made["fetchedBytes"] < len(layer.blob)


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def leave_partial(layout: Layout, out: Path) -> tuple[Path, Path]:
    """What a run leaves that fails at its last chunk: a partial image and a journal."""
    layer = layout.layers[0]
    where = layer.frames[-1].offset + 30
    flip(layout.layer_blob(), where)
    done = command(layout.name, out, "--jobs", "1")
    assert done.returncode == 1
    assert f"chunk {len(layer.frames) - 1}: " in done.stderr
    flip(layout.layer_blob(), where)
    (partial,) = out.rglob("layer.erofs.partial")
    (journal,) = out.rglob("layer.erofs.journal")
    return partial, journal


@pytest.mark.parametrize("form", ["containerd", "no tree", "spec"])
def test_another_tree_after_an_interrupt(form: str, image: bytes, tmp_path: Path):
    """The tree of the first try is replaced, whichever way round."""
    layout = write_image(tmp_path / "image", [FORMS[form](image)])
    for number, choice in enumerate(("containerd", "none", "layer")):
        (wanted,) = unpacked(layout.name, tmp_path / f"wanted-{number}", "--verity", choice)
        leave_partial(layout, tmp_path / f"out-{number}")
        (made,) = unpacked(layout.name, tmp_path / f"out-{number}", "--verity", choice)
        assert Path(made["path"]).read_bytes() == Path(wanted["path"]).read_bytes()


# What is refused


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_bit_leaves_nothing_under_the_name(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    offset = layer.frames[2].offset + 40 if layer.frames else len(layer.blob) // 2
    flip(layout.layer_blob(), offset)
    done = command(layout.name, tmp_path / "out")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("lazyfs")]
    (line,) = errors
    digest = layout.manifest["layers"][0]["digest"].removeprefix("sha256:")[:12]
    assert line.startswith(f"lazyfs unpack: layer 1 (sha256:{digest}): ")
    assert not list((tmp_path / "out").rglob("layer.erofs"))


def test_hash_blocks_are_proven(image: bytes, tmp_path: Path):
    layer = seekable(image)
    for place in (layer.tree.offset + BLOCK, layer.tree.end - 1):
        layout = write_image(tmp_path / str(place), [layer])
        flip(layout.layer_blob(), place)
        done = command(layout.name, tmp_path / "out")
        assert done.returncode == 1
        assert "hash block" in done.stderr
    assert not list((tmp_path / "out").rglob("layer.erofs"))


@pytest.mark.parametrize("form", ["containerd", "no tree", "spec", "zstd", "raw"])
def test_a_wrong_diff_id(form: str, image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [FORMS[form](image)], [f"sha256:{'1' * 64}"])
    done = command(layout.name, tmp_path / "out")
    assert done.returncode == 1
    assert "diff ID" in done.stderr
    assert files_in(tmp_path / "out") <= {
        f"{name}/layer.erofs.partial" for name in _folders(tmp_path)
    }
    assert not list((tmp_path / "out").rglob("layer.erofs"))


def _folders(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "out").iterdir()]


@pytest.mark.parametrize("form", ["containerd", "no tree", "spec", "zstd"])
def test_a_finished_layer_that_has_rotted(form: str, image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [FORMS[form](image)])
    for number, choice in enumerate(("layer", "containerd", "none")):
        (made,) = unpacked(layout.name, tmp_path / f"out-{number}", "--verity", choice)
        path = Path(made["path"])
        flip(path, 100_000)
        done = command(layout.name, tmp_path / f"out-{number}", "--verity", choice)
        assert done.returncode == 1
        assert f"{path} is there, but" in done.stderr
        assert "remove it" in done.stderr
        flip(path, 100_000)
        other = command(layout.name, tmp_path / f"out-{number}", "--verity", "containerd")
        assert other.returncode == (0 if choice == "containerd" else 1)
        path.with_name("layer.erofs.dmverity").write_text('{"roothash": "00", "hashoffset": 1}')
        assert command(layout.name, tmp_path / f"out-{number}", "--verity", choice).returncode == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["erofs:{0}/layer.erofs", "{0}/out"], 1, "is unpacked already"),
        (["oci:{0}/none:app", "{0}/out"], 1, "no such file"),
        (["oci:{0}/image:app", "{0}/out", "--layer", "2"], 1, "there is no layer 2"),
        (["oci:{0}/image:app", "{0}/image/oci-layout/out"], 1, "Not a directory"),
        (["oci:{0}/image:app", "{0}/out", "--verity", "sha1"], 2, "invalid choice"),
        (["oci:{0}/image:app"], 2, "required: DIR"),
    ],
)
def test_failures_are_one_line(
    words: list[str], status: int, message: str, image: bytes, tmp_path: Path
):
    write_image(tmp_path / "image", [seekable(image)])
    done = command(*(word.format(tmp_path) for word in words))
    assert done.returncode == status
    assert message in done.stderr
    if status == 1:
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("layer ")]
        assert line.startswith("lazyfs unpack: ")
    assert not (tmp_path / "out").exists()


def test_two_at_a_time(image: bytes, tmp_path: Path):
    """The second one is refused, whatever the first is doing."""
    layout = write_image(tmp_path / "image", [seekable(image)])
    (made,) = unpacked(layout.name, tmp_path / "out")
    folder = Path(made["path"]).parent
    holder = subprocess.Popen(
        ["flock", "-x", folder, "-c", "echo locked; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        done = command(layout.name, tmp_path / "out")
        assert done.returncode == 1
        assert "another process unpacks there" in done.stderr
    finally:
        holder.communicate()


def test_summary_for_a_person(image: bytes, tmp_path: Path):
    layer = seekable(image)
    layout = write_image(tmp_path / "image", [layer])
    done = command(layout.name, tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout.startswith("layer 1: unpacked, ")
    assert "dm-verity root" in done.stdout
    assert "layer 1/1: done" in done.stderr
    quiet = command(layout.name, tmp_path / "out", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
