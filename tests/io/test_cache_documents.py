"""The folder of documents: whole or absent, bounded, and refused where others may write."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache.documents import ABANDONED_S, MAX_DOCUMENT_BYTES, USED_AGAIN_S, DocumentFolder
from cache.errors import CacheOpenError, CacheWriteError

NAME = "manifest-sha256-" + "ab" * 32


@pytest.fixture
def folder(tmp_path: Path):
    with DocumentFolder.open(tmp_path, "documents") as opened:
        yield opened


@pytest.fixture
def path(folder: DocumentFolder, tmp_path: Path) -> Path:
    folder.write(NAME, b"content")
    return tmp_path / "documents" / NAME


def test_what_was_written_is_read(folder: DocumentFolder, path: Path):
    assert folder.read(NAME) == b"content"
    folder.write(NAME, b"")
    assert folder.read(NAME) == b""
    folder.discard(NAME)
    assert folder.read(NAME) is None
    folder.discard(NAME)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(hashlib.sha256(b"content").digest()[:20]),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
        lambda path: subprocess.run(["sh", "-c", 'rm "$0" && mkfifo "$0"', path], check=True),
        lambda path: os.truncate(path, MAX_DOCUMENT_BYTES + 100),
    ],
)
def test_what_is_torn_or_rotten_counts_as_absent(folder: DocumentFolder, path: Path, harm):
    harm(path)
    assert folder.read(NAME) is None


def test_what_is_rotten_can_be_replaced(folder: DocumentFolder, path: Path):
    path.write_bytes(b"rotten")
    folder.write(NAME, b"new")
    assert folder.read(NAME) == b"new"


def test_what_is_too_long_is_not_kept(folder: DocumentFolder):
    with pytest.raises(CacheWriteError):
        folder.write(NAME, bytes(MAX_DOCUMENT_BYTES + 1))
    assert folder.read(NAME) is None


def test_a_disk_that_fails_is_an_error_of_the_cache(folder: DocumentFolder, path: Path):
    path.unlink()
    path.mkdir()
    (path / "file").touch()
    with pytest.raises(CacheWriteError):
        folder.write(NAME, b"content")
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "A", "a\n", "a" * 202])
def test_names_are_names(folder: DocumentFolder, name: str):
    with pytest.raises(ValueError, match="cannot name a document"):
        folder.read(name)


def test_the_least_recently_used_goes_first(folder: DocumentFolder, tmp_path: Path):
    now = time.time()
    for number in range(5):
        folder.write(f"d{number}", bytes(1000))
        then = now - USED_AGAIN_S * (10 - number)
        os.utime(tmp_path / "documents" / f"d{number}", (then, then))
    assert folder.read("d0") is not None  # and so it is now the latest
    folder.trim(3 * 1032)
    assert [number for number in range(5) if folder.read(f"d{number}")] == [0, 3, 4]
    folder.trim(0)
    assert list((tmp_path / "documents").iterdir()) == []


def test_what_dead_processes_left_goes(folder: DocumentFolder, tmp_path: Path):
    old, new = (tmp_path / "documents" / f".new-{number}" for number in (1, 2))
    old.touch()
    new.touch()
    then = time.time() - ABANDONED_S - 1
    os.utime(old, (then, then))
    folder.trim(1 << 20)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents").chmod(0o770)
    with pytest.raises(CacheOpenError, match="others than its owner"):
        DocumentFolder.open(tmp_path, "documents")


def test_what_is_no_folder_is_refused(tmp_path: Path):
    (tmp_path / "documents").symlink_to("/tmp")
    with pytest.raises(CacheOpenError):
        DocumentFolder.open(tmp_path, "documents")
    with pytest.raises(CacheOpenError):
        DocumentFolder.open(tmp_path / "missing", "documents")


WRITER = """
import sys
from pathlib import Path
from cache.documents import DocumentFolder
with DocumentFolder.open(Path(sys.argv[1]), "documents") as folder:
    print("begin", flush=True)
    while True:
        folder.write("name", sys.argv[2].encode() * 100_000)
"""


def test_a_writer_that_is_killed_leaves_one_whole_document(tmp_path: Path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, letter],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for letter in "ab"
    ]
    with DocumentFolder.open(tmp_path, "documents") as folder:
        try:
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"begin\n"
            for _ in range(200):
                assert folder.read("name") in (None, b"a" * 100_000, b"b" * 100_000)
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()
        assert folder.read("name") in (None, b"a" * 100_000, b"b" * 100_000)
