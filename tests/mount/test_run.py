"""``lazyfs run``: containers by real runtimes, on an image that is fetched lazily."""

import os
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lazyfs.mount.changes import left_changes
from lazyfs.mount.mountinfo import current_mounts
from tests.support import images
from tests.support.lazy_mounts import PROGRAM, lazyfs, ready
from tests.support.mounting import kill_processes, needs_fuse, wait_for_end
from tests.support.nobody import nobody
from tests.support.overlay_oracle import run
from tests.support.small_layers import SmallImage, small_image

pytestmark = [pytest.mark.mount, needs_fuse]

WITHIN_S = 60
CONTAINERS = Path("/run/lazyfs/.containers")
RUNTIMES = ("crun", "runc")


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> SmallImage:
    return small_image(tmp_path_factory.mktemp("image"))


def ran(image: SmallImage, *words: str, options: tuple[str, ...] = ()):
    """A container that has run to its end."""
    cache = os.fspath(image.cache)
    return lazyfs("run", "--cache-dir", cache, *options, image.name, *words, check=False)


def assert_nothing_left(name: str) -> None:
    assert not (CONTAINERS / name).exists()
    assert not [entry for entry in current_mounts() if f"/{name}/" in entry.mountpoint]
    assert not left_changes()


def started(
    image: SmallImage, name: str, script: str, *options: str
) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A container that has said so; it is ended with the block."""
    where = ("--cache-dir", image.cache, "--name", name)
    return ready("run", *where, *options, image.name, "sh", "-c", script)


def runtime_of(process: subprocess.Popen) -> int:
    """The runtime's process below a lazyfs run."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    [found] = [
        int(child)
        for child in children
        if b"--bundle" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_container_is_as_the_image_and_the_user_want_it(
    image: SmallImage, tmp_path: Path, runtime: str
):
    (tmp_path / "shared").write_text("of the host")
    (tmp_path / "variables").write_text("# a note\nFROM_FILE=1\n")
    script = (
        "id; pwd; echo $A $FROM_FILE; cat /shared; stat -c %a /tmp; cat /proc/net/dev | wc -l; "
    )
    script += "echo new > /tmp/new || exit 1; echo x > /shared || echo refused; exit 7"
    words: tuple[str, ...]
    words = ("--runtime", runtime, "--name", f"one-{runtime}", "-u", "web", "-w", "/made/up")
    words += ("-e", "A=b", "--env-file", f"{tmp_path}/variables", "--network", "none")
    done = ran(image, "sh", "-c", script, options=(*words, "-v", f"{tmp_path}/shared:/shared:ro"))
    who = "uid=1234(web) gid=2345(web) groups=3456(extra),4567(logs)"
    wanted = [who, "/made/up", "b 1", "of the host1777", "3", "refused"]
    assert done.stdout.splitlines() == wanted, done.stderr
    assert done.returncode == 7
    assert_nothing_left(f"one-{runtime}")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exit_statuses_are_dockers(image: SmallImage, runtime: str):
    options = ("--runtime", runtime)
    assert ran(image, "sh", "-c", "exit 42", options=options).returncode == 42
    assert ran(image, "/data/first", options=options).returncode == 126
    assert ran(image, "nothing", options=options).returncode == 127


def test_what_is_wrong_is_said_before_anything_runs(image: SmallImage, tmp_path: Path):
    for options, said in (
        (("-u", "stranger"), "no user 'stranger'"),
        (("--runtime", "none-such"), "not installed"),
        (("-v", f"{tmp_path}/none:/x"), "does not exist"),
        (("--name", "../up"), "not a name"),
        (("-t",), "not a terminal"),
        (("-w", "relative"), "not an absolute path"),
    ):
        done = ran(image, "id", options=options)
        assert (done.returncode, done.stdout) == (125, ""), options
        assert said in done.stderr


def test_a_read_only_root(image: SmallImage):
    script = "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo memory"
    done = ran(image, "sh", "-c", script, options=("--read-only",))
    assert done.stdout.split() == ["refused", "memory"]


def test_a_container_sees_what_umoci_unpacks(image: SmallImage, tmp_path: Path):
    run("umoci", "unpack", "--image", f"{image.layout}:{images.TAG}", tmp_path / "bundle")
    command = ["find", ".", "-xdev", "!", "-path", "./etc/hos*", "-exec"]
    command += ["stat", "-c", "%n %f %u %g %t:%T", "{}", ";"]
    unpacked = subprocess.check_output(command, cwd=tmp_path / "bundle/rootfs", text=True)
    done = ran(image, *command, options=("-w", "/"))
    mine = {line for line in done.stdout.splitlines() if not line.startswith("./etc/resolv.conf")}
    assert len(mine) > 40
    hidden = ("./dev ", "./proc ", "./sys ")  # mount points: their file systems show
    assert {line for line in mine if not line.startswith(hidden)} == {
        line for line in unpacked.splitlines() if not line.startswith(hidden)
    }


def test_what_is_written_can_be_kept(image: SmallImage, tmp_path: Path):
    options = ("--rw", f"{tmp_path}/changes")
    ran(image, "sh", "-c", "echo kept > /data/first", options=options)
    assert ran(image, "cat", "/data/second", options=options).stdout == "kept\n"
    assert ran(image, "cat", "/data/second").stdout == "one file of two names"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_signals_are_passed_on(image: SmallImage, runtime: str):
    script = 'trap "echo got; exit 9" TERM; echo ready; sleep 60 & wait'
    with started(image, f"signal-{runtime}", script, "--runtime", runtime) as process:
        process.terminate()
        assert process.communicate(timeout=WITHIN_S)[0] == "got\n"
        assert process.returncode == 9
    assert_nothing_left(f"signal-{runtime}")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_container_outlives_its_lazyfs_run_and_is_removed_later(image: SmallImage, runtime: str):
    name = f"orphan-{runtime}"
    script = "echo ready; read line; cat /data/large | wc -c"
    reading, writing = os.pipe()
    command = [*PROGRAM, "run", "-i", "--name", name, "--runtime", runtime]
    command += ["--cache-dir", os.fspath(image.cache), image.name, "sh", "-c", script]
    with (
        subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, text=True) as process,
        os.fdopen(writing, "wb", buffering=0) as line,
    ):
        os.close(reading)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        runtime_process = runtime_of(process)
        process.kill()
        ran(image, "id")
        assert (CONTAINERS / name).exists(), "a container that runs was removed"
        line.write(b"\n")
        assert process.stdout.read().split() == [str(3 << 20)]
        assert wait_for_end(runtime_process)
    assert f"container {name}" in lazyfs("doctor", check=False).stdout
    assert ran(image, "id").returncode == 0
    assert_nothing_left(name)


def test_when_all_is_killed_the_next_run_tidies_up(image: SmallImage):
    marker = f"1000.{os.getpid()}"
    with started(image, "killed", f"echo ready; sleep {marker}") as process:
        runtime_process = runtime_of(process)
        root = os.fspath(CONTAINERS / "killed/rootfs")
        for folder in Path("/run/lazyfs").glob("*/state.json"):
            if root in folder.read_text():
                kill_processes(folder.parent)
        process.kill()
        os.kill(runtime_process, signal.SIGKILL)  # the container goes on without it
    assert ran(image, "id").returncode == 0
    assert_nothing_left("killed")
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [command for command in commands if command.startswith(f"sleep\0{marker}".encode())]


def test_a_terminal(image: SmallImage):
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (33, 77))
    before = termios.tcgetattr(theirs)
    command = [*PROGRAM, "run", "-it", "--cache-dir", os.fspath(image.cache), image.name]
    script = "trap 'echo interrupted; exit 5' INT; tty; stty size; while :; do sleep 1; done"
    setup = [
        sys.executable,
        "-c",
        "import os,sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])",
    ]
    with subprocess.Popen(
        [*setup, *command, "sh", "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        said = b""
        asked = False
        deadline_s = time.monotonic() + WITHIN_S
        while process.poll() is None and time.monotonic() < deadline_s:
            if select.select([ours], [], [], 0.1)[0]:
                said += os.read(ours, 4096)
            if b"33 77" in said and not asked:
                os.write(ours, b"\x03")  # once: when the container has ended it would be for us
                asked = True
        process.kill()
    while select.select([ours], [], [], 0)[0]:
        said += os.read(ours, 4096)
    assert process.returncode == 5, said
    assert b"/dev/pts/0" in said
    assert b"interrupted" in said
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_without_root(image: SmallImage):
    run("chmod", "-R", "a+rX", image.layout.parent)
    for folder in image.layout.parent.parents:
        folder.chmod(folder.stat().st_mode | 0o055)
    with nobody() as user:
        words = (
            "run",
            "--runtime",
            "crun",
            image.name,
            "sh",
            "-c",
            "id -u; echo x > /new && ls /new",
        )
        done = user.run(*PROGRAM, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["0", "/new"]
