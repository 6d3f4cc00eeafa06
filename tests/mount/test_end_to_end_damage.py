"""One flipped bit, wherever it is, gives an error that names it, and never wrong bytes."""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.counting_proxy import counting_proxy
from tests.support.images import noise
from tests.support.layer_blob import LayerBlob, Part, take_apart
from tests.support.lazy_mounts import LazyMount, lazyfs, mounted
from tests.support.mounting import is_mounted, needs_fuse
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

CHUNK, BLOCK = 256 << 10, 4096
FILE_BYTES = 1 << 20
DAMAGED = 1
"""The layer that tests damage: the upper of two."""

BOTTOM = {f"bottom/{number}": noise(100_000, b"bottom%d" % number) for number in range(3)}
TOP = {f"top/{number:02}": noise(FILE_BYTES, b"top%d" % number) for number in range(12)}
FILES = BOTTOM | TOP


@dataclass(frozen=True)
class Victim:
    """An image that can be damaged."""

    image: ConvertedImage
    parts: LayerBlob
    """Of the layer to be damaged."""

    @property
    def blob(self) -> Path:
        """The file of that layer in the registry."""
        return self.image.blobs[DAMAGED]

    def place(self, name: str) -> int:
        """Where a file's data begin in the layer's image."""
        found = self.image.raw[DAMAGED].read_bytes().find(FILES[name])
        assert found > 0
        return found

    def files_in(self, start: int, end: int) -> set[str]:
        """Files with data between two offsets of the layer's image."""
        places = {name: self.place(name) for name in TOP}
        return {name for name, at in places.items() if at < end and at + FILE_BYTES > start}

    def options(self, folder: Path) -> tuple[str | Path, ...]:
        return "--cache-dir", folder / "cache", "--timeout", "10s"


@pytest.fixture(scope="module")
def victims(registry: RegistryServer, work_folder: Path) -> dict[str, Victim]:
    folder = work_folder / "victims"
    write_layout(folder / "layout", "tar", [BOTTOM, TOP])
    made = {}
    for name, options in {"verity": [], "no-verity": ["--no-verity"]}.items():
        raw, repository = folder / name, f"victim-{name}"
        options.append(f"--chunk-size={CHUNK}")
        image = push_and_convert(folder / "layout", "tar", repository, registry, raw, *options)
        blob = image.blobs[DAMAGED].read_bytes()
        made[name] = Victim(image, take_apart(blob, image.annotations(DAMAGED)))
    return made


@pytest.fixture(params=["verity", "no-verity"])
def victim(request: pytest.FixtureRequest, victims: dict[str, Victim]) -> Victim:
    return victims[request.param]


@pytest.fixture
def proven(victims: dict[str, Victim]) -> Victim:
    """The one that has a dm-verity tree."""
    return victims["verity"]


@contextlib.contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    """One bit of a file is another one."""
    flip(path, offset)
    try:
        yield
    finally:
        flip(path, offset)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def broken_files(mount: LazyMount) -> set[str]:
    """The files that give EIO; all others must have their content."""
    broken = set()
    for name, content in FILES.items():
        try:
            found = (mount.path / name).read_bytes()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            broken.add(name)
        else:
            assert found == content, f"wrong bytes in {name}"
    return broken


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def middle(part: Part) -> int:
    return (part.start + part.end) // 2


def test_in_a_frame(victim: Victim, tmp_path: Path):
    chunk = victim.place("top/05") // CHUNK + 1
    options = victim.options(tmp_path)
    with mounted(victim.image.name, tmp_path / "mnt", *options) as mount:
        with flipped(victim.blob, middle(victim.parts.frames[chunk])):
            assert broken_files(mount) == victim.files_in(chunk * CHUNK, (chunk + 1) * CHUNK)
            # The rest of the file can be read, and the part that cannot is not served in pieces.
            with (mount.path / "top/05").open("rb", buffering=0) as file:
                start = chunk * CHUNK - victim.place("top/05")
                content = TOP["top/05"]
                assert os.pread(file.fileno(), 5000, start - 5000) == content[start - 5000 : start]
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(file.fileno(), 1, start + CHUNK - 1)
            host = victim.image.name.partition("/")[0]
            wanted = victim.parts.digests[chunk].hex()
            names = (victim.image.name, f"layer {DAMAGED + 1}", f"chunk {chunk} ", host, wanted)
            assert lines_with(mount.log(), *names)
            totals = mount.totals()
            assert totals["errors"] > 0
            assert totals["verification_failures"] > 0
        assert broken_files(mount) == set(), "what was repaired in the registry comes back"


def test_in_the_frame_of_the_superblock(victim: Victim, tmp_path: Path):
    with flipped(victim.blob, middle(victim.parts.frames[0])):
        said = refused(victim, tmp_path)
    assert "chunk 0 " in said
    assert victim.parts.digests[0].hex() in said


@pytest.mark.parametrize("where", ["frame", "header", "first offset", "last digest"])
def test_in_the_table(victim: Victim, where: str, tmp_path: Path):
    table = victim.parts.table
    offset = {
        "frame": table.start - 8,
        "header": table.start + 16,
        "first offset": table.start + 23,
        "last digest": table.end - 1,
    }[where]
    with flipped(victim.blob, offset):
        said = refused(victim, tmp_path)
    assert "chunk table" in said


@pytest.mark.parametrize("where", ["superblock", "root block"])
def test_at_the_top_of_the_tree(proven: Victim, where: str, tmp_path: Path):
    assert proven.parts.verity is not None
    offset = proven.parts.verity.start + {"superblock": 64, "root block": BLOCK}[where]
    with flipped(proven.blob, offset):
        said = refused(proven, tmp_path)
    assert "verity" in said or "hash block" in said


def refused(victim: Victim, tmp_path: Path) -> str:
    """What ``lazyfs mount`` says when it does not mount the image."""
    directory = tmp_path / "mnt"
    done = lazyfs(
        "mount", "--mkdir", *victim.options(tmp_path), victim.image.name, directory, check=False
    )
    assert done.returncode == 1, "it was mounted"
    assert not directory.exists() or not is_mounted(directory)
    said = done.stderr
    assert lines_with(said, victim.image.name, f"layer {DAMAGED + 1}"), said
    return said


def test_in_a_hash_block(proven: Victim, tmp_path: Path):
    """The last leaf: it proves the last blocks of the image, and nothing else."""
    tree = proven.parts.verity
    assert tree is not None
    data_blocks = proven.parts.image_size // BLOCK
    first_unproven = (data_blocks - 1) // 64 * 64
    with mounted(proven.image.name, tmp_path / "mnt", *proven.options(tmp_path)) as mount:
        with flipped(proven.blob, tree.end - BLOCK + 10):
            affected = proven.files_in(first_unproven * BLOCK, proven.parts.image_size)
            assert broken_files(mount) == affected
            assert affected
            assert affected != set(TOP)
            names = (proven.image.name, f"layer {DAMAGED + 1}", "hash block")
            assert lines_with(mount.log(), *names)
            assert mount.totals()["verification_failures"] > 0
        assert broken_files(mount) == set()


@pytest.mark.parametrize("kind", ["manifest", "config"])
def test_in_a_document(victim: Victim, kind: str, registry: RegistryServer, tmp_path: Path):
    digest = victim.image.result["digest"]
    if kind == "config":
        digest = victim.image.manifest["config"]["digest"]
    with flipped(registry.blob_path(digest), 40):
        done = lazyfs(
            *("mount", "--mkdir", *victim.options(tmp_path), victim.image.name, tmp_path / "mnt"),
            check=False,
        )
        lazyfs("umount", tmp_path / "mnt", check=False)
    # The configuration is not needed to mount, so nothing that is wrong in it can be believed.
    assert done.returncode == (1 if kind == "manifest" else 0)


def cached_data(victim: Victim, folder: Path) -> dict[Path, bytes]:
    """The cached chunks of which every byte is file data."""
    digests = {digest.hex() for digest in victim.parts.digests[1:]}
    paths = (folder / "cache/chunks").rglob("*")
    return {path: path.read_bytes() for path in paths if path.stem in digests}


@pytest.mark.parametrize("damage", ["bit", "short", "empty"])
def test_in_the_cache(victim: Victim, damage: str, registry: RegistryServer, tmp_path: Path):
    """Every cached file is damaged: all is noticed, and all is right again afterwards."""
    options = victim.options(tmp_path)
    with (
        running_registry(registry.storage.parent) as own,
        counting_proxy(own.host) as proxy,
    ):
        name = victim.image.name_at(proxy.host)
        with mounted(name, tmp_path / "mnt", *options) as mount:
            assert broken_files(mount) == set()
        whole = cached_data(victim, tmp_path)
        assert len(whole) == len(victim.parts.frames) - 1
        for path in filter(Path.is_file, (tmp_path / "cache/chunks").rglob("*")):
            if damage == "bit":
                flip(path, path.stat().st_size // 2)
            else:
                os.truncate(path, path.stat().st_size // 2 if damage == "short" else 0)
        with mounted(name, tmp_path / "mnt", *options) as mount:
            assert broken_files(mount) == set()
            totals = mount.totals()
            assert totals["fetched_bytes"] > sum(map(len, TOP.values()))
            assert totals["errors"] == 0
            if damage == "bit":
                assert totals["verification_failures"] > 0
                assert lines_with(mount.log(), name, f"layer {DAMAGED + 1}", "chunk ", "rotten")
        assert cached_data(victim, tmp_path) == whole


def test_in_the_cache_without_the_registry(
    victim: Victim, registry: RegistryServer, tmp_path: Path
):
    """Nothing can heal the chunk, so it is refused; the others go on."""
    options = ("--cache-dir", tmp_path / "cache", "--timeout", "2s")
    chunk = victim.place("top/07") // CHUNK + 1
    with running_registry(registry.storage.parent) as own:
        name = victim.image.name_at(own.host)
        with mounted(name, tmp_path / "first", *options) as mount:
            assert broken_files(mount) == set()
        with mounted(name, tmp_path / "mnt", *options) as mount:
            own.stop()
            [path] = (tmp_path / "cache/chunks").rglob(f"{victim.parts.digests[chunk].hex()}.*")
            flip(path, path.stat().st_size // 2)
            assert broken_files(mount) <= victim.files_in(chunk * CHUNK, (chunk + 1) * CHUNK)
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / "top/07").read_bytes()
            assert mount.failures()
            assert lines_with(mount.log(), name, f"layer {DAMAGED + 1}", f"chunk {chunk}", "rotten")
