"""Readers of what does not come are freed at the deadline: once, with the error of choice."""

import errno
import os
import subprocess
import sys

import pytest

from tests.support.mounting import COMMAND_WITHIN_S, mounted, needs_fuse
from tests.support.survival import pause

pytestmark = [pytest.mark.mount, needs_fuse]

OPTIONS = ("--timeout", "1")
FORGOTTEN_S = 1.5
"""More than ``lazyfs.fuse.lateness.MEMORY_S``."""

READ = "import os, sys; file = os.open(sys.argv[1], os.O_RDONLY); os.read(file, 4096)"


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ((), errno.EIO),
        (("--on-timeout", "eio"), errno.EIO),
        (("--on-timeout", "etimedout"), errno.ETIMEDOUT),
    ],
)
def test_a_late_read_fails_once_although_the_kernel_asks_twice(tmp_path, options, number):
    with mounted("basic", tmp_path, *OPTIONS, *options) as mount:
        mount.switch("wait", on=True)
        with pytest.raises(OSError) as failed:
            (mount.path / "wait0").read_bytes()
        assert failed.value.errno == number
        document = mount.status()
        assert document["fuse"]["operations"]["read"] == 2
        assert document["calls"]["read"] == 1
        assert document["fuse"]["failures"] == {errno.errorcode[number]: 2}
        mount.switch("wait", on=False)
        pause(FORGOTTEN_S)
        assert (mount.path / "wait0").read_bytes() == b"wait:wait"


def test_readers_that_wait_for_the_same_page_are_freed_together(tmp_path):
    with mounted("basic", tmp_path, *OPTIONS) as mount:
        mount.switch("wait", on=True)
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READ, mount.path / "wait0"], stderr=subprocess.PIPE
            )
            for _ in range(8)
        ]
        said = [reader.communicate(timeout=COMMAND_WITHIN_S)[1] for reader in readers]
        assert all(os.strerror(errno.EIO).encode() in words for words in said)
        # Who came late had a try of his own; nobody had two.
        assert mount.status()["calls"]["read"] < len(readers)


def test_other_parts_of_the_file_are_not_affected(tmp_path):
    with mounted("basic", tmp_path, *OPTIONS) as mount:
        mount.switch("wait", on=True)
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "wait0").read_bytes()
        assert (mount.path / "wait1").read_bytes() == b"wait:wait."
        assert (mount.path / "hello").read_bytes() == b"hello world\n"
