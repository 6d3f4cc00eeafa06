"""Layers that the destination has already are not converted again."""

import json
import os
import zlib
from dataclasses import replace
from typing import Any

import pytest

from lazyfs.cli.progress import SilentProgress
from lazyfs.convert import ledger as ledger_module
from lazyfs.convert.ledger import Ledger
from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.pipeline import convert_image
from lazyfs.convert.results import ConversionResult, LayerOutcome
from lazyfs.seekable.mediatypes import Layout
from tests.support import tar_samples as tars
from tests.support.memory_store import MemoryStore, put_tar_image

DESCRIBED = tars.tar(tars.directory(b"./"), tars.directory(b"tmp", mode=0o1777), tars.file(b"f"))
OPEN = tars.tar(tars.file(b"tmp/a", b"1"))
SMALL = ConvertOptions(chunk_size_bytes=16 << 10)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "cache" / "conversions")


async def convert(
    layers: list[bytes],
    destination: MemoryStore,
    ledger: Ledger | None,
    options: ConvertOptions = SMALL,
    **fields: Any,
) -> tuple[ConversionResult, MemoryStore]:
    source = MemoryStore("source")
    source.top = put_tar_image(source, layers, **fields)
    result = await convert_image(source, destination, options, SilentProgress(), ledger)
    return result, source


def outcomes(result: ConversionResult) -> list[str]:
    return [layer.outcome.value for layer in result.images[0].layers]


async def test_the_second_time_nothing_is_read(ledger):
    store = MemoryStore()
    first, _ = await convert([DESCRIBED, OPEN], store, ledger)
    assert outcomes(first) == ["converted", "converted"]
    second, source = await convert([DESCRIBED, OPEN], store, ledger)
    assert outcomes(second) == ["reused", "reused"]
    assert source.opened == []
    assert second.descriptor == first.descriptor
    for ours, theirs in zip(first.images[0].layers, second.images[0].layers, strict=True):
        assert replace(theirs, outcome=ours.outcome) == ours


async def test_a_destination_that_has_dropped_the_blob_gets_it_again(ledger):
    store = MemoryStore()
    first, _ = await convert([DESCRIBED, OPEN], store, ledger)
    del store.content[first.images[0].layers[0].descriptor.digest]
    second, _ = await convert([DESCRIBED, OPEN], store, ledger)
    assert outcomes(second) == ["converted", "reused"]
    assert second.descriptor == first.descriptor
    other, _ = await convert([DESCRIBED, OPEN], MemoryStore(), ledger)
    assert outcomes(other) == ["converted", "converted"]


@pytest.mark.parametrize(
    "options",
    [
        ConvertOptions(chunk_size_bytes=32 << 10),
        ConvertOptions(chunk_size_bytes=16 << 10, level=5),
        ConvertOptions(chunk_size_bytes=16 << 10, verity=False),
        ConvertOptions(chunk_size_bytes=16 << 10, verity_block_size_bytes=512),
        ConvertOptions(chunk_size_bytes=16 << 10, layout=Layout.EROFS_SPEC),
        ConvertOptions(chunk_size_bytes=16 << 10, layout=Layout.EROFS_SPEC, file_aligned=True),
    ],
)
async def test_other_options_are_other_conversions(ledger, options):
    store = MemoryStore()
    await convert([DESCRIBED], store, ledger)
    assert outcomes((await convert([DESCRIBED], store, ledger, options))[0]) == ["converted"]
    assert outcomes((await convert([DESCRIBED], store, ledger, options))[0]) == ["reused"]
    again = replace(options, jobs=7)
    assert outcomes((await convert([DESCRIBED], store, ledger, again))[0]) == ["reused"]


async def test_annotations_are_those_of_the_source_of_today(ledger):
    store = MemoryStore()
    await convert([DESCRIBED], store, ledger)
    source = MemoryStore()
    top = put_tar_image(source, [DESCRIBED])
    manifest = source.document(top)
    manifest["layers"][0]["annotations"] = {"org.example": "new"}
    source.top = source.put(json.dumps(manifest).encode(), top.media_type)
    result = await convert_image(source, store, SMALL, SilentProgress(), ledger)
    assert outcomes(result) == ["reused"]
    assert result.images[0].layers[0].descriptor.annotations["org.example"] == "new"


async def test_a_layer_that_leaves_something_open_is_good_for_its_place_only(ledger):
    store = MemoryStore()
    other = tars.tar(tars.directory(b"./"), tars.directory(b"tmp", mode=0o700))
    first, _ = await convert([DESCRIBED, OPEN], store, ledger)
    second, _ = await convert([other, OPEN], store, ledger)
    assert outcomes(second) == ["converted", "converted"]
    assert first.images[0].layers[1].diff_id != second.images[0].layers[1].diff_id
    alone, _ = await convert([OPEN], store, ledger)
    assert outcomes(alone) == ["converted"]
    for layers in ([DESCRIBED, OPEN], [other, OPEN], [OPEN]):
        again, _ = await convert(layers, store, ledger)
        assert set(outcomes(again)) == {"reused"}


async def test_what_a_known_layer_says_to_a_new_one_is_known_too(ledger):
    """A new layer on a known base: the base is not read again, even where it is asked."""
    store = MemoryStore()
    base = tars.tar(
        tars.pax({b"SCHILY.xattr.user.x": b"\xff"}) + tars.directory(b"tmp", mode=0o1777, uid=5),
        tars.symlink(b"lib\xff", b"usr/lib"),
        tars.file(b".wh.gone"),
        tars.file(b"closed/.wh..wh..opq"),
    )
    new = tars.tar(tars.file(b"tmp/new"), tars.file(b"lib\xff/x"), tars.file(b"closed/y"))
    await convert([DESCRIBED, base], store, ledger)
    result, source = await convert([DESCRIBED, base, new], store, ledger)
    assert outcomes(result) == ["reused", "reused", "converted"]
    assert source.opened == [result.images[0].layers[2].source.digest]
    fresh, _ = await convert([DESCRIBED, base, new], MemoryStore(), None)
    assert result.descriptor == fresh.descriptor


async def test_without_what_it_said_the_known_layer_is_read_for_it(ledger, tmp_path):
    store = MemoryStore()
    await convert([DESCRIBED], store, ledger)
    for path in (tmp_path / "cache/conversions").iterdir():
        if b"directories" in zlib.decompress(path.read_bytes()):
            path.unlink()
    result, source = await convert([DESCRIBED, OPEN], store, ledger)
    assert outcomes(result) == ["reused", "converted"]
    assert len(source.opened) == 2
    fresh, _ = await convert([DESCRIBED, OPEN], MemoryStore(), None)
    assert result.descriptor == fresh.descriptor


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-3],
        lambda raw: b"{}",
        lambda raw: zlib.compress(b"[]"),
        lambda raw: zlib.compress(b"\xff"),
        lambda raw: zlib.compress(bytes(1 << 20)),
        lambda raw: changed(raw, lambda entry: entry.pop("key")),
        lambda raw: changed(raw, lambda entry: entry["key"].update(level=99)),
        lambda raw: changed(raw, lambda entry: entry["result"].update(digest="sha256:0")),
        lambda raw: changed(raw, lambda entry: entry["result"].update(size_bytes="1")),
        lambda raw: changed(raw, lambda entry: entry["result"].update(size_bytes=-1)),
        lambda raw: changed(raw, lambda entry: entry["result"].update(annotations={"a": 1})),
        lambda raw: changed(raw, lambda entry: entry.pop("result")),
    ],
)
async def test_broken_entries_are_passed_over(ledger, tmp_path, damage):
    store = MemoryStore()
    await convert([DESCRIBED], store, ledger)
    for path in (tmp_path / "cache/conversions").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert outcomes((await convert([DESCRIBED], store, ledger))[0]) == ["converted"]
    assert outcomes((await convert([DESCRIBED], store, ledger))[0]) == ["reused"]


def changed(raw: bytes, change: Any) -> bytes:
    entry = json.loads(zlib.decompress(raw))
    if "result" in entry:
        change(entry)
    return zlib.compress(json.dumps(entry).encode())


async def test_a_folder_that_cannot_be_used_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        result, _ = await convert([DESCRIBED], MemoryStore(), Ledger(tmp_path / "file" / "x"))
        assert outcomes(result) == [LayerOutcome.CONVERTED.value]


async def test_the_oldest_entries_go(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "MAX_ENTRIES", 4)
    store = MemoryStore()
    folder = tmp_path / "cache/conversions"
    layers = [tars.tar(tars.directory(b"./"), tars.file(b"%d" % n)) for n in range(5)]
    for number, layer in enumerate(layers):
        await convert([layer], store, ledger)
        for path in folder.iterdir():
            if path.stat().st_mtime > 100:
                os.utime(path, (number, number))
    assert len(list(folder.iterdir())) == 4
    assert outcomes((await convert(layers[-1:], store, ledger))[0]) == ["reused"]
    assert not list(folder.glob(".new-*"))


async def test_what_a_killed_process_was_writing_goes(ledger, tmp_path):
    folder = tmp_path / "cache/conversions"
    folder.mkdir(parents=True)
    old, new = folder / ".new-old", folder / ".new-new"
    for path in (old, new):
        path.write_bytes(b"half an entry")
    os.utime(old, (100, 100))
    await convert([DESCRIBED], MemoryStore(), ledger)
    assert not old.exists()
    assert new.exists()
