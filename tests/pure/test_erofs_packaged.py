"""Images of the packaged mkfs.erofs against the tree they were made from."""

from pathlib import Path

import pytest

from tests.support.erofs_files import (
    Facts,
    ImageFiles,
    facts_of_tree,
    make_image,
    make_tree,
    packaged_mkfs,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    make_tree(root, longest_name=200)  # mkfs.erofs 1.5 fails with longer ones
    return root


def comparable(facts: dict[str, Facts]) -> dict[str, Facts]:
    """What an image keeps of its source: not blocks, and folders' sizes and links differ."""
    kept = {}
    for path, entry in facts.items():
        dropped = {"blocks"}
        if entry["content"] is None:
            dropped |= {"size"}
        kept[path] = {key: value for key, value in entry.items() if key not in dropped}
    return kept


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-Enoinline_data",),
        ("-Eforce-inode-extended",),
        ("--chunksize=4096",),
        ("--chunksize=16384", "-Eforce-chunk-indexes"),
        ("-zlz4",),
        ("-zlz4hc,12", "-C65536"),
        ("-zlz4hc", "-Elegacy-compress"),
        ("-zlz4hc", "-Eztailpacking"),
        ("-x-1",),
    ],
    ids=" ".join,
)
def test_an_image_shows_its_source(source: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "image"
    make_image(packaged_mkfs(), source, image, *options)
    found = comparable(ImageFiles([image.read_bytes()]).facts())
    expected = comparable(facts_of_tree(source))
    for entry in expected.values():
        if "-x-1" in options:
            entry["xattrs"] = {}
    assert found.keys() == expected.keys()
    for path, facts in expected.items():
        assert found[path] == facts, path
