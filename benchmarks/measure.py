"""Takes the measurements: every contender with every workload, in turn, in several rounds."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import Contender, State
from benchmarks.system import BenchmarkError, drop_caches, interrupts_deferred, run
from benchmarks.workloads import Target, Workload

WORKLOAD_WITHIN_S = 120
WARM = "warm"
START = "start"
PROGRAMS = (("chroot", "--version"), ("find", "--version"))
"""What the workloads themselves run."""


@dataclass(frozen=True)
class Suite:
    """What is compared with what."""

    name: str
    title: str
    contenders: Sequence[Contender]
    """The others are compared with the first."""
    workloads: Sequence[Workload]
    large: Path
    """The large file, below the root."""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    suite: str
    workload: str
    unit: str
    contender: str
    state: str
    """``cold``, ``disk``, ``warm``: what it began from."""
    round: int
    seconds: float
    count: int = 1
    """How much was done in that time."""
    facts: dict[str, float] = field(default_factory=dict)
    """Afterwards, since the contender's start: bytes, requests, memory."""


@dataclass(frozen=True)
class Turn:
    """One contender doing one workload in one round."""

    suite: Suite
    round: int
    workload: Workload
    contender: Contender
    state: State

    def __str__(self) -> str:
        names = f"{self.workload.name}, {self.contender.name}, {self.state}"
        return f"{self.suite.name}, round {self.round + 1}: {names}"

    def measure(self) -> Iterator[Sample]:
        """Start the contender, do the workload twice, stop it.

        Raises:
            BenchmarkError: a program failed, or a read did.
        """
        contender, workload, state = self.contender, self.workload, self.state
        try:
            contender.prepare(state)
            drop_caches()
            for command in (*PROGRAMS, *contender.programs):
                run(*command, check=False)
            with watched(contender, WORKLOAD_WITHIN_S):
                start_s, _ = _timed(lambda: contender.start(state))
                if state not in contender.ready:
                    yield self._sample(START, state, start_s)
                target = Target(contender.root, contender.root / self.suite.large)
                seconds, count = _timed(lambda: workload.run(target))
                facts = contender.facts()
                yield self._sample(workload.name, state, seconds, workload.unit, count, facts)
                if workload.is_start:
                    yield self._sample(f"{START}+{workload.name}", state, start_s + seconds)
                if state is State.DISK:
                    seconds, count = _timed(lambda: workload.run(target))
                    yield self._sample(workload.name, WARM, seconds, workload.unit, count)
        except OSError as error:
            raise BenchmarkError(f"{self}: {error}") from error
        finally:
            with interrupts_deferred():
                contender.stop()

    def _sample(
        self,
        workload: str,
        state: str,
        seconds: float,
        unit: str = "s",
        count: int = 1,
        facts: dict[str, float] | None = None,
    ) -> Sample:
        who = self.contender.name
        what = (self.suite.name, workload, unit, who, state, self.round, seconds, count)
        return Sample(*what, facts or {})


def turns(suite: Suite, rounds: int) -> Iterator[Turn]:
    """Everything that a suite measures, in order.

    All contenders do a workload before the next workload's turn comes, and each round another
    one begins: what the machine does besides hits all of them alike.
    """
    for number in range(rounds):
        first = number % len(suite.contenders)
        rotated = (*suite.contenders[first:], *suite.contenders[:first])
        for workload in suite.workloads:
            for contender in rotated:
                for state in contender.states:
                    if contender.takes(workload, state):
                        yield Turn(suite, number, workload, contender, state)


def _timed(what: Callable[[], int | None]) -> tuple[float, int]:
    """The time that something takes, in seconds, and what it returns."""
    began = time.perf_counter()
    count = what()
    return time.perf_counter() - began, 1 if count is None else count


@contextlib.contextmanager
def watched(contender: Contender, within_s: float) -> Iterator[None]:
    """Abort a contender that hangs: whoever reads from it then gets an error."""
    timer = threading.Timer(within_s, contender.abort)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
