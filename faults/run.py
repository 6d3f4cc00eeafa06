"""Runs faults, several side by side: most of their time they wait for a deadline."""

import contextlib
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from faults import answers, daemons, disk, logins, mirrors, mounting, transport, waiting
from faults.model import REFUSED, Fault, Result
from faults.mounts import FaultError, RefusedError
from faults.servers import servers
from faults.stage import Shared, Stage

TABLES: dict[str, Sequence[Fault]] = {
    "answers to reads": answers.FAULTS,
    "mounting": mounting.FAULTS,
    "mirrors": mirrors.FAULTS,
    "transport": transport.FAULTS,
    "logins and signed addresses": logins.FAULTS,
    "waiting": waiting.FAULTS,
    "cache and disk": disk.FAULTS,
    "processes, and no registry": daemons.FAULTS,
}
FAULTS = tuple(fault for table in TABLES.values() for fault in table)
DETAILS_BYTES = 8000
JOBS = 3 * len(os.sched_getaffinity(0))


def run_fault(fault: Fault, shared: Shared, folder: Path) -> Result:
    """Let one fault happen; whatever comes of it is a result."""
    place = folder / fault.name
    place.mkdir()
    began = time.monotonic()
    details = ""
    try:
        with ExitStack() as stack:
            stage = Stage(place, shared, stack)
            seen = fault.script(stage)
            if not fault.agrees(seen):
                details = "\n".join(stage.said)[-DETAILS_BYTES:]
    except RefusedError as error:
        seen, details = f"{REFUSED}{' '.join(str(error).split())}", str(error)
    except Exception as error:  # noqa: BLE001 - one fault must not take the others along
        seen = f"{type(error).__name__}: {' '.join(str(error).split())[:DETAILS_BYTES]}"
        details = str(error) if isinstance(error, FaultError) else traceback.format_exc()
    took_s = time.monotonic() - began
    shutil.rmtree(place, ignore_errors=True)
    return Result(fault, seen, took_s, details)


@contextlib.contextmanager
def running(faults: Sequence[Fault], jobs: int = JOBS) -> Iterator[dict[str, "Future[Result]"]]:
    """Run faults in threads; a result to come for each, by name."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name,
        servers() as loop,
        ThreadPoolExecutor(jobs) as pool,
    ):
        Path(name).chmod(0o755)
        shared = Shared(Path(name), loop)
        found = {f.name: pool.submit(run_fault, f, shared, Path(name)) for f in faults}
        try:
            yield found
        finally:
            pool.shutdown(cancel_futures=True)
