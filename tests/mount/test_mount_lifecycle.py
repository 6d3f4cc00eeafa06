"""From ``lazyfs mount`` to ``lazyfs umount``, and what happens when it goes wrong."""

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lazyfs.mount import roles
from lazyfs.mount.mountinfo import parse_mountinfo, top_mount
from tests.support.mounting import (
    COMMAND_WITHIN_S,
    PROGRAM,
    folder_of,
    is_mounted,
    kill,
    kill_processes,
    lazyfs,
    mounted,
    needs_fuse,
    process_of,
    public_folder,
    wait_for_end,
)

pytestmark = [pytest.mark.mount, needs_fuse]

RUNTIME = Path("/run/lazyfs")


def folders(directory: Path) -> list[Path]:
    """All runtime folders for a directory, finished or not."""
    return [
        path.parent
        for path in [*RUNTIME.glob("*/state.json"), *RUNTIME.glob(".new-*/state.json")]
        if json.loads(path.read_text())["mountpoint"] == os.fspath(directory.resolve())
    ]


@contextlib.contextmanager
def hold(path: Path) -> Iterator[int]:
    """Keep a file open; closing it may fail, as its file system may be dead then."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            os.close(file)


@pytest.fixture
def directory(tmp_path):
    """A mountpoint on which nothing is left."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    lazyfs("umount", "--lazy", os.fspath(path), check=False)
    assert not is_mounted(path)
    assert folders(path) == []


def test_mount_warn_use_unmount(directory):
    done = lazyfs("mount", "basic", os.fspath(directory))
    assert done.stdout == ""
    assert done.stderr == "lazyfs mount: layer 1: no dm-verity: checked by SHA-512 only\n"
    pid = json.loads((folder_of(directory) / "state.json").read_text())["pid"]
    assert (directory / "hello").read_bytes() == b"hello world\n"
    assert os.stat(directory).st_ino == 1
    assert lazyfs("umount", os.fspath(directory)).stderr == ""
    assert list(directory.iterdir()) == []
    assert wait_for_end(pid)


def test_the_daemon_keeps_nothing_of_its_starter(directory):
    lazyfs("mount", "--quiet", "basic", os.fspath(directory))
    process = Path("/proc") / str(
        json.loads((folder_of(directory) / "state.json").read_text())["pid"]
    )
    assert os.readlink(process / "cwd") == "/"
    supervisor = process_of(folder_of(directory), roles.SUPERVISOR)
    assert supervisor is not None
    assert os.getsid(int(process.name)) == os.getsid(supervisor) == supervisor
    log = os.fspath(folder_of(directory) / "log")
    files = [os.readlink(process / "fd" / name) for name in os.listdir(process / "fd")]
    assert sorted(os.readlink(process / "fd" / str(n)) for n in range(3)) == ["/dev/null", log, log]
    pipes = Counter(file for file in files if file.startswith("pipe:"))
    assert set(pipes.values()) <= {2}  # both ends its own
    assert lazyfs("umount", os.fspath(directory)).returncode == 0


def test_the_kernel_reads_ahead_and_more_at_once(tmp_path):
    with mounted("basic", tmp_path) as mount:
        device = mount.status()["device"]
        assert Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text() == "1024\n"
        number = device.removeprefix("0:")
        script = f"mount -t fusectl none {tmp_path} && cat {tmp_path}/{number}/max_background"
        words = ["unshare", "-m", "sh", "-c", script]
        assert subprocess.run(words, capture_output=True, timeout=60).stdout == b"512\n"


def test_mkdir(tmp_path):
    directory = tmp_path / "new" / "mnt"
    missing = lazyfs("mount", "basic", os.fspath(directory), check=False)
    assert missing.returncode == 1
    assert missing.stderr == (f"lazyfs mount: {directory} does not exist (--mkdir creates it)\n")
    lazyfs("mount", "--quiet", "--mkdir", "basic", os.fspath(directory))
    assert (directory / "hello").exists()
    lazyfs("umount", os.fspath(directory))
    directory.rmdir()
    lazyfs("mount", "--mkdir", "refused", os.fspath(directory), check=False)
    assert not directory.exists()


REASONS = {
    "refused": "layer 3 is not EROFS",
    "bug": "internal error: ZeroDivisionError: a bug",
    "exit": "the daemon ended with status 7 before the mount was ready",
    "file-root": "the root of file-root is not a directory",
}


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        *((image, "background") for image in REASONS),
        *((image, "foreground") for image in REASONS if image != "exit"),
    ],
)
def test_a_mount_that_fails_says_why_and_leaves_nothing(directory, image, mode):
    words = ["mount", *(["--foreground"] if mode == "foreground" else [])]
    done = lazyfs(*words, image, os.fspath(directory), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"lazyfs mount: {REASONS[image]}")
    assert done.stderr.count("\n") == 1
    assert not is_mounted(directory)
    assert folders(directory) == []


def test_a_second_mount_in_the_same_place_is_refused(directory):
    lazyfs("mount", "--quiet", "basic", os.fspath(directory))
    done = lazyfs("mount", "big", os.fspath(directory), check=False)
    assert done.returncode == 1
    assert "already has a lazyfs mount" in done.stderr
    assert (directory / "hello").exists()
    lazyfs("umount", os.fspath(directory))


def test_a_file_is_no_mountpoint(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = lazyfs("mount", "basic", os.fspath(file), check=False)
    assert (done.returncode, done.stderr) == (1, f"lazyfs mount: {file} is not a directory\n")


def test_what_the_daemon_needs_is_not_hidden_from_it(directory):
    cache = os.fspath(directory / "cache")
    done = lazyfs("mount", "--cache-dir", cache, "basic", os.fspath(directory), check=False)
    assert done.returncode == 1
    assert f"would hide {cache}" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount(tmp_path, number):
    with mounted("basic", tmp_path) as mount:
        os.kill(mount.pid, number)
        assert wait_for_end(mount.pid)
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()


def test_a_signal_ends_a_daemon_whose_readers_wait_and_whose_files_are_open(tmp_path):
    with mounted("basic", tmp_path, "--timeout", "0") as mount:
        mount.switch("wait", on=True)
        reader = subprocess.Popen(["cat", mount.path / "wait0"], stderr=subprocess.DEVNULL)
        mount.wait_for_request()
        file = os.open(mount.path / "large", os.O_RDONLY)
        os.kill(mount.pid, signal.SIGTERM)
        kill(mount.pid, signal.SIGINT)  # an impatient user changes nothing
        assert wait_for_end(mount.pid)
        assert reader.wait(COMMAND_WITHIN_S) == 1
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()
        with pytest.raises(OSError, match="not connected"):
            os.read(file, 1)
        with pytest.raises(OSError, match="not connected"):
            os.close(file)


def test_a_mount_whose_processes_were_killed_is_shown_as_dead_and_cleaned_up(tmp_path):
    with mounted("basic", tmp_path) as mount, hold(mount.path / "hello"):
        mount.kill()
        document = mount.status()
        assert document["state"] == "dead"
        assert "has died" in document["problem"]
        assert "dead" in lazyfs("status", os.fspath(mount.path)).stdout
        again = lazyfs("mount", "basic", os.fspath(mount.path), check=False)
        assert "already has a lazyfs mount" in again.stderr
        with pytest.raises(OSError, match="not connected") as failed:
            os.stat(mount.path / "never asked for")
        assert failed.value.errno == errno.ENOTCONN
        assert lazyfs("umount", os.fspath(mount.path)).stderr == ""
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()


def test_what_a_dead_daemon_left_does_not_stop_the_next_mount(tmp_path):
    with mounted("basic", tmp_path) as mount:
        mount.kill()
        subprocess.run(["umount", mount.path], check=True, timeout=COMMAND_WITHIN_S)
        lazyfs("mount", "--quiet", "basic", os.fspath(mount.path))
        assert not mount.folder.exists()
        assert mount.status()["state"] == "mounted"


def test_unmounting_from_outside_ends_the_daemon(tmp_path):
    with mounted("basic", tmp_path) as mount:
        subprocess.run(["umount", mount.path], check=True, timeout=COMMAND_WITHIN_S)
        assert wait_for_end(mount.pid)
        assert not mount.folder.exists()


def test_two_mounts_at_once(tmp_path):
    with mounted("basic", tmp_path) as one, mounted("big", tmp_path, name="two") as two:
        assert (one.path / "hello").exists()
        assert len(os.listdir(two.path / "big")) == 10_000
        assert one.pid != two.pid
        found = {
            document["mountpoint"] for document in json.loads(lazyfs("status", "--json").stdout)
        }
        assert {os.fspath(one.path), os.fspath(two.path)} <= found
        lazyfs("umount", os.fspath(one.path))
        assert (two.path / "big/file-00001").read_bytes() == b"1"


def test_a_busy_mount_names_its_holders(tmp_path):
    with mounted("basic", tmp_path) as mount:
        holder = subprocess.Popen(["sleep", "600"], cwd=mount.path / "dir")
        try:
            done = lazyfs("umount", os.fspath(mount.path), check=False)
            assert done.returncode == 1
            assert f"sleep (process {holder.pid}: working directory)" in done.stderr
            assert is_mounted(mount.path)
            lazyfs("umount", "--lazy", os.fspath(mount.path))
            assert not is_mounted(mount.path)
            assert mount.status()["state"] == "detached"
            assert os.listdir(f"/proc/{holder.pid}/cwd") == ["sub"]
            # The place is free again although the first daemon still serves.
            lazyfs("mount", "--quiet", "big", os.fspath(mount.path))
            os.kill(mount.pid, signal.SIGTERM)
            assert wait_for_end(mount.pid)
            assert not mount.folder.exists()
            assert (mount.path / "big/file-00001").read_bytes() == b"1"
            lazyfs("umount", os.fspath(mount.path))
        finally:
            holder.kill()
            holder.wait()


def test_a_detached_mount_ends_with_its_last_user(tmp_path):
    with mounted("basic", tmp_path) as mount:
        with hold(mount.path / "hello") as file:
            lazyfs("umount", "--lazy", os.fspath(mount.path))
            assert os.read(file, 5) == b"hello"
        assert wait_for_end(mount.pid)
        assert not mount.folder.exists()


def test_umount_of_something_else(directory):
    for path in (directory, directory / "missing", Path("/proc")):
        done = lazyfs("umount", os.fspath(path), check=False)
        assert (done.returncode, done.stderr) == (
            1,
            f"lazyfs umount: {path} is not a lazyfs mount\n",
        )
    assert lazyfs("status", os.fspath(directory), check=False).returncode == 1


def test_mountpoints_are_found_by_other_names(tmp_path, directory):
    lazyfs("mount", "--quiet", "basic", os.fspath(directory))
    link = tmp_path / "link"
    link.symlink_to("mnt")
    [document] = json.loads(lazyfs("status", "--json", f"{link}/").stdout)
    assert document["mountpoint"] == os.fspath(directory)
    lazyfs("umount", os.fspath(link))


def test_a_stopped_daemon_does_not_hang_status_or_umount(tmp_path):
    with mounted("basic", tmp_path) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
        document = mount.status()
        assert document["state"] == "silent"
        assert "did not answer within" in document["problem"]
        lazyfs("umount", os.fspath(mount.path))
        assert not is_mounted(mount.path)
        assert not mount.folder.exists()
        assert wait_for_end(mount.pid)


def test_interrupting_the_start_leaves_nothing(directory):
    starter = subprocess.Popen(
        [*PROGRAM, "mount", "never", directory], stderr=subprocess.PIPE, text=True
    )
    daemon = None
    try:
        while daemon is None:
            children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
            if children and (Path("/proc") / children[0] / "fd").exists() and folders(directory):
                daemon = int(children[0])
        starter.send_signal(signal.SIGINT)
        _, said = starter.communicate(timeout=COMMAND_WITHIN_S)
    finally:
        starter.kill()
        starter.wait()
    assert starter.returncode == 130
    assert said == "lazyfs: interrupted\n"
    assert wait_for_end(daemon)
    assert folders(directory) == []


def test_a_starter_that_is_killed_takes_its_daemon_along(directory, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    (gate / "closed").touch()
    starter = subprocess.Popen([*PROGRAM, "mount", f"gated@{gate}", directory])
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(starter.wait)
        cleanup.callback(starter.kill)
        while not (gate / "waiting").exists():
            assert starter.poll() is None
        daemon = int((gate / "waiting").read_text())
        cleanup.callback(kill, daemon, signal.SIGKILL)
        starter.kill()
        starter.wait()
        assert wait_for_end(daemon)
    assert not is_mounted(directory)


@pytest.mark.parametrize("image", ["basic", "lingering"])
def test_foreground(directory, image):
    """Unmounting ends serving by itself, and what is left of it may take its time."""
    daemon = subprocess.Popen(
        [*PROGRAM, "mount", "--foreground", image, directory], stderr=subprocess.PIPE, text=True
    )
    try:
        assert daemon.stderr is not None
        said = [daemon.stderr.readline(), daemon.stderr.readline()]
        assert "no dm-verity" in said[0]
        assert said[1].startswith(f"lazyfs mount: serving {image} on {directory}")
        assert (directory / "hello").exists()
        [document] = json.loads(lazyfs("status", "--json", os.fspath(directory)).stdout)
        assert (document["pid"], document["state"]) == (daemon.pid, "mounted")
        daemon.send_signal(signal.SIGINT)
        _, rest = daemon.communicate(timeout=COMMAND_WITHIN_S)
        assert (daemon.returncode, rest) == (0, "")
    finally:
        daemon.kill()
        daemon.wait()


def test_status_for_a_person(tmp_path):
    with mounted("basic", tmp_path) as mount:
        said = " ".join(lazyfs("status", os.fspath(mount.path)).stdout.split())
        for fact in (
            f"mount {mount.path}",
            "state mounted",
            "fetched 4.0 KiB in 2 requests",
            "3 hits, 1 misses",
            "1 sha256:abababababab yes none 1.0 MiB 512.0 KiB 4.0 KiB 2 1/16",
            "it has a chunk table; no dm-verity: checked by SHA-512 only",
        ):
            assert fact in said
        document = mount.status()
        assert document["fuse"]["read_bytes"] == 0
        assert document["image"] == f"basic@{mount.switches}"


@dataclass
class Nobody:
    """The user nobody, in a mount namespace where /dev/fuse is open to all, as it mostly is."""

    folder: Path
    namespace: int
    """The process whose mount namespace it is."""

    @property
    def mountpoint(self) -> str:
        return os.fspath(self.folder / "mnt")

    @property
    def prefix(self) -> tuple[str, ...]:
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        return ("nsenter", f"--mount=/proc/{self.namespace}/ns/mnt", *user)

    def lazyfs(self, *words: str, check: bool = True):
        environment = {"XDG_RUNTIME_DIR": os.fspath(self.folder / "run"), "HOME": "/nonexistent"}
        return lazyfs(*words, check=check, prefix=self.prefix, **environment)

    def status(self) -> dict:
        [document] = json.loads(self.lazyfs("status", "--json", self.mountpoint).stdout)
        assert isinstance(document, dict)
        return document

    def is_mounted(self) -> bool:
        text = Path(f"/proc/{self.namespace}/mountinfo").read_bytes()
        return top_mount(self.mountpoint, parse_mountinfo(text)) is not None

    def runtime_folders(self) -> list[Path]:
        return list((self.folder / "run").glob("lazyfs/*"))


@pytest.fixture
def nobody():
    with public_folder() as folder:
        for name in ("mnt", "run"):
            (folder / name).mkdir(mode=0o700)
            os.chown(folder / name, 65534, 65534)
        os.mknod(folder / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
        os.chmod(folder / "fuse", 0o666)
        script = f"mount --bind {folder}/fuse /dev/fuse && echo ready && exec sleep 600"
        keeper = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE)
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == b"ready\n"
            user = Nobody(folder, keeper.pid)
            yield user
            user.lazyfs("umount", "--lazy", user.mountpoint, check=False)
        finally:
            keeper.kill()
            keeper.communicate()


def test_without_root(nobody: Nobody):
    nobody.lazyfs("mount", "--quiet", "basic", nobody.mountpoint)
    cat = [*nobody.prefix, "cat", f"{nobody.mountpoint}/hello"]
    assert subprocess.run(cat, capture_output=True, timeout=60).stdout == b"hello world\n"
    peek = [*nobody.prefix[:2], "ls", nobody.mountpoint]
    assert subprocess.run(peek, capture_output=True, timeout=60).returncode != 0  # not even root
    assert nobody.status()["state"] == "mounted"
    again = nobody.lazyfs("mount", "basic", nobody.mountpoint, check=False)
    assert "already has a lazyfs mount" in again.stderr
    nobody.lazyfs("umount", nobody.mountpoint)
    assert not nobody.is_mounted()
    assert nobody.runtime_folders() == []


def test_without_root_a_killed_daemon_is_cleaned_up(nobody: Nobody):
    nobody.lazyfs("mount", "--quiet", "basic", nobody.mountpoint)
    [folder] = nobody.runtime_folders()
    kill_processes(folder)
    assert nobody.status()["state"] == "dead"
    nobody.lazyfs("umount", nobody.mountpoint)
    assert not nobody.is_mounted()
    assert nobody.runtime_folders() == []


def test_without_root_a_mount_survives_its_daemon(nobody: Nobody):
    nobody.lazyfs("mount", "--quiet", "basic", nobody.mountpoint)
    [folder] = nobody.runtime_folders()
    for _ in range(3):
        daemon = process_of(folder, roles.DAEMON)
        assert daemon is not None
        os.kill(daemon, signal.SIGKILL)
        assert wait_for_end(daemon)
        cat = [*nobody.prefix, "cat", f"{nobody.mountpoint}/hello"]
        assert subprocess.run(cat, capture_output=True, timeout=60).stdout == b"hello world\n"
    assert nobody.status()["survival"]["survives"] is True
    nobody.lazyfs("restart", nobody.mountpoint)
    assert nobody.status()["survival"]["restarts"] == 4
    nobody.lazyfs("umount", nobody.mountpoint)
    assert not nobody.is_mounted()
    assert nobody.runtime_folders() == []


def test_without_root_a_signal_unmounts(nobody: Nobody):
    nobody.lazyfs("mount", "--quiet", "basic", nobody.mountpoint)
    daemon = nobody.status()["pid"]
    os.kill(daemon, signal.SIGTERM)
    assert wait_for_end(daemon)
    assert not nobody.is_mounted()
    assert nobody.runtime_folders() == []


def test_without_root_busy(nobody: Nobody):
    nobody.lazyfs("mount", "--quiet", "basic", nobody.mountpoint)
    script = f"cd {nobody.mountpoint} && echo there && exec sleep 600"
    words = [*nobody.prefix, "sh", "-c", script]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"there\n"
        done = nobody.lazyfs("umount", nobody.mountpoint, check=False)
        assert done.returncode == 1
        assert f"(process {holder.pid}: working directory)" in done.stderr
        assert nobody.is_mounted()
    finally:
        holder.kill()
        holder.communicate()
    nobody.lazyfs("umount", nobody.mountpoint)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--suid", "--suid and --dev are for root only"),
        ("--dev", "--suid and --dev are for root only"),
        ("--allow-other", "user_allow_other"),
    ],
)
def test_what_only_root_may(nobody: Nobody, option, reason):
    done = nobody.lazyfs("mount", option, "basic", nobody.mountpoint, check=False)
    assert done.returncode == 1
    assert reason in done.stderr
    assert not nobody.is_mounted()
    assert nobody.runtime_folders() == []


@pytest.mark.parametrize("options", [(), ("--suid", "--dev")])
def test_suid_and_dev_only_if_asked(tmp_path, options):
    with mounted("basic", tmp_path, *options) as mount:
        flags = os.statvfs(mount.path).f_flag
        assert bool(flags & os.ST_NOSUID) == (not options)
        assert bool(flags & os.ST_NODEV) == (not options)
        assert flags & os.ST_RDONLY
