"""Conversions by a startup profile: what it names is in front, and the rest is as without it."""

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert.ledger import Ledger
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult
from lazyfs.errors import ConversionError
from lazyfs.profile.document import FileRange, Profile, decode_profile, encode_profile
from lazyfs.seekable.mediatypes import Layout
from tests.support import spec_format as spec
from tests.support import tar_samples as tars
from tests.support.erofs_reader import Found, ImageInMemory
from tests.support.lazy_mounts import lazyfs
from tests.support.memory_store import MemoryStore, put_tar_image
from tests.support.tiny_image import write_layout

CHUNK = 16 << 10
NOISE = random.Random(9)
LIBRARY = NOISE.randbytes(900_000)
BASE = tars.tar(
    tars.directory(b"./"),
    tars.directory(b"lib"),
    *(tars.file(b"lib/f%03d" % number, NOISE.randbytes(3000)) for number in range(150)),
    tars.file(b"lib/library.so", LIBRARY),
    tars.hard_link(b"lib/library.so.1", b"lib/library.so"),
    tars.sparse_1_0(b"lib/sparse", 4 << 20, [(0, b"x"), (3 << 20, NOISE.randbytes(100_000))]),
    tars.file(b"z-last", NOISE.randbytes(70_000)),
)
TOP = tars.tar(tars.directory(b"./"), tars.file(b"app", NOISE.randbytes(200_000)))
HOT = (
    FileRange(0, b"z-last", 0, 70_000),
    FileRange(0, b"lib/library.so.1", 300_000, 50_000),
    FileRange(1, b"app", 0, 4096),
    FileRange(0, b"lib/f077", 0, 3000),
    FileRange(0, b"lib/sparse", 3 << 20, 100_000),
    FileRange(0, b"lib/library.so", 0, 4096),
    FileRange(1, b"gone", 0, 4096),
)
LAYERS = ("sha256:" + "1" * 64, "sha256:" + "2" * 64)
PROFILE = Profile("sha256:" + "0" * 64, LAYERS, 3, (), HOT)


def options(**values: Any) -> ConvertOptions:
    given: dict[str, Any] = {"chunk_size_bytes": CHUNK, "jobs": 2, "profile": PROFILE}
    return ConvertOptions(**given | values)


class Converted:
    """An image and what it was made by."""

    def __init__(self, store: MemoryStore, result: ConversionResult) -> None:
        self.store = store
        self.result = result
        [self.image] = result.images

    def raw(self, number: int) -> bytes:
        """A layer's image, by the zstd tool, with what may follow it there."""
        blob = self.store.content[self.image.layers[number].descriptor.digest]
        return subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout

    def tree(self, number: int) -> dict[bytes, Found]:
        return ImageInMemory(self.raw(number)).tree()

    @property
    def profile(self) -> Profile:
        assert self.image.profile is not None
        return self.image.profile


async def converted(
    chosen: ConvertOptions, layers: list[bytes] | None = None, ledger: Ledger | None = None
) -> Converted:
    return await converted_into(MemoryStore(), chosen, layers, ledger)


async def converted_into(
    store: MemoryStore,
    chosen: ConvertOptions,
    layers: list[bytes] | None = None,
    ledger: Ledger | None = None,
) -> Converted:
    source = MemoryStore("source")
    source.top = put_tar_image(source, [BASE, TOP] if layers is None else layers)
    return Converted(store, await convert_image(source, store, chosen, SilentProgress(), ledger))


def plain(found: Found) -> Found:
    """What does not depend on where an inode lies."""
    return found._replace(nid=0)


FORMS = [
    {},
    {"verity": False},
    {"chunk_size_bytes": 4096},
    {"layout": Layout.EROFS_SPEC},
    {"layout": Layout.EROFS_SPEC, "file_aligned": True},
    {"layout": Layout.EROFS_SPEC, "verity_block_size_bytes": 16 << 10},
]


@pytest.fixture(params=FORMS, ids=str)
def chosen(request) -> ConvertOptions:
    return options(**request.param)


async def test_every_file_is_as_without_the_profile(chosen):
    hot, cold = await converted(chosen), await converted(replace(chosen, profile=None))
    for number in (0, 1):
        ours, theirs = hot.tree(number), cold.tree(number)
        assert {path: plain(found) for path, found in ours.items()} == {
            path: plain(found) for path, found in theirs.items()
        }
        assert ours[b"lib/library.so"].nid == ours[b"lib/library.so.1"].nid if not number else True
        assert hot.raw(number) != cold.raw(number)


async def test_the_result_does_not_depend_on_jobs(chosen):
    one, many = [await converted(replace(chosen, jobs=jobs)) for jobs in (1, 7)]
    assert one.result.descriptor == many.result.descriptor
    assert one.profile == many.profile


async def test_what_is_hot_lies_behind_the_metadata_and_the_new_profile_names_it(chosen):
    made = await converted(chosen)
    for number in (0, 1):
        front = made.image.layers[number].front
        assert front is not None
        runs = [run for run in made.profile.blocks if run.layer == number]
        assert runs[-1][1:] == front.data
        assert runs[0].first == 0
        assert all(run.end <= front.data.first for run in runs[:-1])
        assert front.data.first < 8
        data = made.raw(number)[front.data.first * 4096 : front.data.end * 4096]
        wanted = {
            0: [LIBRARY[300_000:350_000], LIBRARY[:4096], made.tree(0)[b"z-last"].content],
            1: [made.tree(1)[b"app"].content[:4096]],
        }
        assert all(piece in data for piece in wanted[number])
    assert made.image.missing_paths == 1
    assert made.profile.image == str(made.image.descriptor.digest)
    assert made.profile.layers == tuple(str(layer.descriptor.digest) for layer in made.image.layers)
    assert made.profile.runs == 3
    assert made.profile.files == HOT[:-1]
    assert decode_profile(encode_profile(made.profile)) == made.profile


async def test_in_the_specs_layout_the_front_ends_with_a_chunk():
    made = await converted(options(layout=Layout.EROFS_SPEC, chunk_size_bytes=1 << 20))
    layer = made.image.layers[0]
    assert layer.front is not None
    blob = made.store.content[layer.descriptor.digest]
    payload, _ = spec.embedded_index(
        blob, layer.descriptor.media_type, dict(layer.descriptor.annotations)
    )
    starts = {entry.uncompressed_offset for entry in spec.read_index(payload).entries}
    assert layer.front.data.first * 4096 in starts
    assert layer.front.data.end * 4096 in starts


async def test_images_that_others_check(tmp_path):
    made = await converted(options())
    for number in (0, 1):
        path = tmp_path / f"{number}.erofs"
        path.write_bytes(made.raw(number))
        done = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not {"<E>", "<W>"} & {*(done.stdout + done.stderr).split()}


async def test_with_another_number_of_layers_paths_count():
    one = replace(PROFILE, layers=LAYERS[:1], files=tuple(f._replace(layer=0) for f in HOT))
    made = await converted(options(profile=one))
    assert all(layer.front is not None for layer in made.image.layers)
    assert made.image.missing_paths == 1
    assert made.profile.files == HOT[:-1]


async def test_a_profile_of_something_else_costs_nothing():
    other = replace(PROFILE, files=(FileRange(0, b"opt/other", 0, 1 << 40),))
    made, cold = await converted(options(profile=other)), await converted(options(profile=None))
    assert made.result.descriptor == cold.result.descriptor
    assert made.image.missing_paths == 1


async def test_a_known_conversion_is_known_with_its_profile(tmp_path):
    ledger, store = Ledger(tmp_path / "conversions"), MemoryStore()
    first = await converted_into(store, options(), ledger=ledger)
    again = await converted_into(store, options(), ledger=ledger)
    assert [str(layer.outcome) for layer in again.image.layers] == ["reused", "reused"]
    assert again.profile == first.profile
    assert again.image.missing_paths == 1
    shorter = replace(PROFILE, files=(*HOT[1:], HOT[2]))
    other = await converted_into(store, options(profile=shorter), ledger=ledger)
    assert [str(layer.outcome) for layer in other.image.layers] == ["converted", "converted"]
    cold = await converted_into(store, options(profile=None), ledger=ledger)
    assert [str(layer.outcome) for layer in cold.image.layers] == ["converted", "converted"]


async def test_where_nothing_can_be_beside_an_image_its_profile_is_spoken_of():
    made = await converted(options())
    assert any("--profile-out" in note for note in made.result.notes)


async def test_layers_that_are_erofs_already_are_refused():
    first = await converted(options(profile=None))
    with pytest.raises(ConversionError, match="is an EROFS image already"):
        await convert_image(first.store, MemoryStore(), options(), SilentProgress())


def test_the_command(tmp_path: Path):
    write_layout(tmp_path / "in", "x", [{"a/b": b"b" * 9000, "c": b"c" * 9000}, {"d": b"d"}])
    files = (FileRange(0, b"c", 0, 9000), FileRange(1, b"gone", 0, 1))
    given, new = tmp_path / "given.profile", tmp_path / "new.profile"
    given.write_bytes(encode_profile(replace(PROFILE, files=files)))
    command = ("convert", "--no-cache", f"oci:{tmp_path / 'in'}:x", f"oci:{tmp_path / 'out'}:x")
    done = lazyfs(*command, "--profile", given, "--profile-out", new)
    assert "12.0 KiB of file data" in done.stdout
    assert "1 of its paths" in done.stdout
    made = decode_profile(new.read_bytes())
    assert made.image in done.stdout
    assert made.files == files[:1]
    pushed = json.loads(lazyfs("profile", "show", "--json", command[-1]).stdout)
    assert pushed["image"] == made.image
    assert pushed["touched_bytes"] == made.touched_bytes
    assert lazyfs(*command, "--profile", tmp_path / "none", check=False).returncode == 1
    assert lazyfs(*command, "--profile-out", new, check=False).returncode == 2
