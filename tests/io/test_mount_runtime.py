"""Runtime folders, and asking daemons that answer badly."""

import dataclasses
import fcntl
import json
import os
import socket
import threading
import time

import pytest

from lazyfs.errors import MountError
from lazyfs.mount import runtime
from lazyfs.mount.census import census
from lazyfs.mount.control import ask, short_address
from lazyfs.mount.mountinfo import MountEntry
from lazyfs.mount.runtime import (
    MountState,
    base_folder,
    create_folder,
    known_mounts,
    sweep,
)

STATE = MountState("/place", "image", os.getpid(), 1.5)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Runtime folders of a test of its own, and a list of mounts."""
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    mounts: list[MountEntry] = []
    monkeypatch.setattr(runtime, "base_folder", lambda: path)
    monkeypatch.setattr(runtime, "current_mounts", lambda: mounts)
    return path, mounts


def test_a_folder_lives_as_long_as_its_lock(base):
    folder, lock = create_folder(STATE)
    assert folder.is_alive()
    assert folder.read_state() == STATE
    assert list(base[0].iterdir()) == [folder.path]
    os.close(lock)
    assert not folder.is_alive()
    sweep()
    assert list(base[0].iterdir()) == []
    assert not folder.is_alive()
    assert folder.read_state() is None
    folder.remove()


def test_a_copy_of_the_lock_keeps_it(base):
    folder, lock = create_folder(STATE)
    copy = os.dup(lock)
    os.close(lock)
    assert folder.is_alive()
    os.close(copy)
    assert not folder.is_alive()


def test_several_may_ask_at_once_whether_a_daemon_lives(base):
    folder, lock = create_folder(STATE)
    os.close(lock)
    asking = os.open(folder.path / "lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not folder.is_alive()
    os.close(asking)


def test_a_place_is_taken_while_a_mount_starts_and_while_it_is_there(base):
    _, mounts = base
    folder, lock = create_folder(STATE)
    with pytest.raises(MountError, match=f"process {os.getpid()}"):
        create_folder(STATE)
    folder.write_state(dataclasses.replace(STATE, device="0:77"))
    mounts.append(MountEntry("0:77", "/place", "fuse.lazyfs", "x"))
    with pytest.raises(MountError, match="has, or is about to have"):
        create_folder(STATE)
    assert len(list(base[0].iterdir())) == 1
    # Detached, or covered by another mount: the place is free.
    mounts[0] = MountEntry("0:78", "/place", "fuse.lazyfs", "x")
    _, second = create_folder(STATE)
    os.close(second)
    os.close(lock)


def test_dead_daemons_with_a_mount_are_kept_for_umount(base):
    _, mounts = base
    folder, lock = create_folder(dataclasses.replace(STATE, device="0:77"))
    mounts.append(MountEntry("0:77", "/place", "fuse.lazyfs", "x"))
    os.close(lock)
    sweep()
    [known] = known_mounts()
    assert (known.folder, known.alive, known.mounted) == (folder, False, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mountpoint": 1}', '{"mountpoint": "/x"}'])
def test_foreign_folders_are_left_alone(base, text):
    path = base[0] / "foreign"
    path.mkdir()
    (path / "state.json").write_text(text)
    assert known_mounts() == []
    sweep()
    assert path.exists()


def test_the_base_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1 if os.getuid() else 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    with pytest.raises(MountError, match="only its owner"):
        base_folder()
    monkeypatch.undo()


def serve(path, answer: bytes | None, hold: threading.Event | None = None) -> threading.Thread:
    """A daemon that gives one answer, perhaps never ending it."""
    listener = socket.socket(socket.AF_UNIX)
    with short_address(path) as address:
        listener.bind(address)
    listener.listen()

    def run() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                if answer is not None:
                    connection.sendall(answer)
                if hold is not None:
                    hold.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_ask(tmp_path):
    deep = tmp_path / ("d" * 200)  # longer than a socket's address may be
    deep.mkdir()
    thread = serve(deep / "control.sock", b'{"a": 1}')
    assert ask(deep / "control.sock") == {"a": 1}
    thread.join()


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b"\xff"])
def test_a_bad_answer(tmp_path, answer):
    thread = serve(tmp_path / "control.sock", answer)
    with pytest.raises(MountError, match="the daemon"):
        ask(tmp_path / "control.sock")
    thread.join()


@pytest.mark.parametrize("answer", [None, b"{"])
def test_no_end_of_answer(tmp_path, answer):
    hold = threading.Event()
    thread = serve(tmp_path / "control.sock", answer, hold)
    with pytest.raises(MountError, match="did not answer within"):
        ask(tmp_path / "control.sock", within_s=0.1)
    hold.set()
    thread.join()


def test_nobody_to_ask(tmp_path):
    with pytest.raises(MountError, match="does not answer"):
        ask(tmp_path / "control.sock")
    with pytest.raises(MountError, match="does not answer"):
        ask(tmp_path / "missing/control.sock")


def test_census_of_every_state(base):
    _, mounts = base
    entries = {
        "starting": dataclasses.replace(STATE, mountpoint="/starting", started_s=time.time()),
        "silent": dataclasses.replace(STATE, mountpoint="/silent", device="0:1"),
        "mounted": dataclasses.replace(STATE, mountpoint="/mounted", device="0:2"),
        "detached": dataclasses.replace(STATE, mountpoint="/detached", device="0:3"),
        "dead": dataclasses.replace(STATE, mountpoint="/dead", device="0:4"),
    }
    locks, threads = {}, []
    for name, state in entries.items():
        folder, locks[name] = create_folder(state)
        if name != "detached":
            mounts.append(MountEntry(state.device or "0:9", state.mountpoint, "fuse.lazyfs", "x"))
        if name in ("mounted", "detached"):
            answer = {"totals": {"requests": 7}, "mountpoint": "/lie", "image": "resolved"}
            threads.append(serve(folder.control, json.dumps(answer).encode()))
    os.close(locks.pop("dead"))
    documents = {str(document["state"]): document for document in census(None)}
    assert set(documents) == set(entries)
    for name, document in documents.items():
        assert document["mountpoint"] == f"/{name}"
        assert document["image"] == "image"
        assert bool(document.get("totals")) == (name in ("mounted", "detached"))
        assert bool(document["problem"]) == (name in ("dead", "silent"))
    assert [document["state"] for document in census("/dead")] == ["dead"]
    with pytest.raises(MountError, match="not a lazyfs mount"):
        census("/other")
    for lock in locks.values():
        os.close(lock)
    for thread in threads:
        thread.join()
