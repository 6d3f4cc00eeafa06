"""Takes the measurements: each contender with all workloads of an image, from nothing."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.contenders import Contender, State
from benchmarks.matrix.contenders import Place, contender
from benchmarks.matrix.images import MatrixImage
from benchmarks.matrix.peers import Peer, PeerContender
from benchmarks.matrix.plan import FULL_PULLS, Item
from benchmarks.matrix.results import Sample
from benchmarks.matrix.workloads import Workload
from benchmarks.measure import watched
from benchmarks.shaped import ShapedLine
from benchmarks.shaper import Counts
from benchmarks.system import BenchmarkError, drop_caches, interrupts_deferred, run, tidy

TURN_WITHIN_S = 900
PROGRAMS = (("chroot", "--version"), ("unshare", "--version"), ("find", "--version"))
Peers = Mapping[str, Peer]


def measure(
    item: Item,
    workloads: Sequence[Workload],
    image: MatrixImage,
    line: ShapedLine,
    registry: str,
    peers: Peers,
    folder: Path,
) -> Iterator[Sample]:
    """Workloads by an item's contender; one that fails is a sample with its error."""
    place = Place(image, line.host, folder / item.image)
    who = contender(item.contender, place, peers)
    try:
        if isinstance(who, PeerContender):
            who.once(registry)
    except BenchmarkError as error:
        yield from (_failed(item, workload, error) for workload in workloads)
        tidy(who.folder)
        return
    try:
        if item.contender in FULL_PULLS:
            yield from _pulled_once(item, who, line, workloads)
        else:
            for workload in workloads:
                yield from _from_nothing(item, who, line, workload)
    finally:
        with interrupts_deferred():
            who.stop()
            tidy(who.folder)


def _from_nothing(
    item: Item, who: Contender, line: ShapedLine, workload: Workload
) -> Iterator[Sample]:
    try:
        _prepare(who)
        before = line.counts()
        with watched(who, TURN_WITHIN_S):
            start_s = _timed(lambda: who.start(State.COLD))
            work_s = _timed(partial(workload.run, who.root))
        yield _sample(item, workload, start_s, work_s, before, line.counts())
    except (BenchmarkError, OSError) as error:
        yield _failed(item, workload, error)
    finally:
        with interrupts_deferred():
            who.stop()


def _pulled_once(
    item: Item, who: Contender, line: ShapedLine, workloads: Sequence[Workload]
) -> Iterator[Sample]:
    """The pull counts for each workload, which begins with nothing of the tree in memory."""
    try:
        _prepare(who)
        before = line.counts()
        with watched(who, TURN_WITHIN_S):
            start_s = _timed(lambda: who.start(State.COLD))
    except (BenchmarkError, OSError) as error:
        yield from (_failed(item, workload, error) for workload in workloads)
        return
    after = line.counts()
    for workload in workloads:
        try:
            _empty_memory(who)
            with watched(who, TURN_WITHIN_S):
                work_s = _timed(partial(workload.run, who.root))
            yield _sample(item, workload, start_s, work_s, before, after)
        except (BenchmarkError, OSError) as error:
            yield _failed(item, workload, error)


def _prepare(who: Contender) -> None:
    who.prepare(State.COLD)
    _empty_memory(who)


def _empty_memory(who: Contender) -> None:
    """Have nothing in memory but the programs."""
    drop_caches()
    for command in (*PROGRAMS, *who.programs):
        run(*command, check=False)


def _sample(
    item: Item, workload: Workload, start_s: float, work_s: float, before: Counts, after: Counts
) -> Sample:
    return Sample(
        item.image,
        workload.name,
        str(item.cell),
        item.contender,
        item.round,
        round(start_s, 4),
        round(work_s, 4),
        after.down_bytes - before.down_bytes,
        after.requests - before.requests,
        after.connections - before.connections,
    )


def _failed(item: Item, workload: Workload, error: Exception) -> Sample:
    what = (item.image, workload.name, str(item.cell), item.contender, item.round)
    return Sample(*what, 0.0, 0.0, 0, 0, 0, error=str(error)[:1000] or type(error).__name__)


def _timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began
