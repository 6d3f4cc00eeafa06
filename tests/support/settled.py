"""Waiting until nothing goes on any more, worker threads included."""

from trio.testing import active_thread_count, wait_all_tasks_blocked, wait_all_threads_completed


async def wait_all_settled(cushion_s: float = 0.0) -> None:
    """Until for `cushion_s` every task waited, and none of them for a worker thread.

    `wait_all_tasks_blocked` alone takes a task that waits for a thread for blocked, so what a test
    finds behind it depends on how quick the machine is.
    """
    while True:
        await wait_all_threads_completed()
        await wait_all_tasks_blocked(cushion_s)
        if active_thread_count() == 0:
            return
