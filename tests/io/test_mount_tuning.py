"""What the daemon sets for itself; Debian's C library tells how many heaps it has (malloc_info)."""

import subprocess
import sys

import trio

from lazyfs.mount import daemon, tuning

THREADS = """
import ctypes, sys, threading
from lazyfs.mount.tuning import tune_allocator
if sys.argv[1] == "tuned":
    tune_allocator()
together = threading.Barrier(4)
def work():
    together.wait()
    kept = bytes(100_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
stdout = ctypes.c_void_p.in_dll(libc, "stdout")
libc.malloc_info(0, stdout)
libc.fflush(stdout)
"""


def heaps(how: str) -> int:
    """Heaps of a process in which threads took memory at once."""
    command = [sys.executable, "-c", THREADS, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.count("<heap nr=")


def test_threads_share_one_heap():
    assert heaps("tuned") == 1
    assert heaps("as it comes") > 1


def test_threads_hand_over_sooner_than_by_default():
    before_s = sys.getswitchinterval()
    try:
        tuning.hand_over_sooner()
        assert 0 < sys.getswitchinterval() < before_s
    finally:
        sys.setswitchinterval(before_s)


async def test_freed_memory_is_given_back_from_time_to_time(monkeypatch, autojump_clock):
    times: list[float] = []
    monkeypatch.setattr(daemon, "give_back_freed_memory", lambda: times.append(trio.current_time()))
    with trio.move_on_after(3.5 * daemon.GIVE_BACK_EVERY_S):
        await daemon._give_back()
    assert len(times) == 3
