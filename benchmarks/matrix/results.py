"""What was measured, as a JSON file that grows, so that an interrupted run can be resumed."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.matrix.plan import Cell, Item


@dataclass(frozen=True)
class Sample:
    """One start and one workload, from nothing."""

    image: str
    workload: str
    cell: str
    contender: str
    round: int
    start_s: float
    """Until the tree can be read; of full pulls: one pull for all workloads of a round."""
    work_s: float
    fetched_bytes: int
    """Over the line, from the registry, up to the end of the workload."""
    requests: int
    connections: int
    error: str = ""
    """Why there are no figures: what failed."""

    @property
    def total_s(self) -> float:
        """From nothing to the end of the workload."""
        return self.start_s + self.work_s

    @property
    def item(self) -> Item:
        """What it is a part of."""
        return Item(Cell.parse(self.cell), self.round, self.image, self.contender)


@dataclass
class Results:
    """Everything that a run has found."""

    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    """That made it: several if it was resumed."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Contenders that could not take part, and why."""
    images: dict[str, dict[str, float]] = field(default_factory=dict)
    """Sizes of each, in bytes, also of what its profiles name (``profiled_bytes``, …)."""
    lines: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each line was found to do."""
    samples: list[Sample] = field(default_factory=list)

    def done(self) -> set[Item]:
        """What need not be measured again."""
        return {sample.item for sample in self.samples}

    def write(self, path: Path) -> None:
        """Replace the file, at once."""
        new = path.with_suffix(path.suffix + ".new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """What ``write`` wrote.

        Raises:
            ValueError: the file is something else.
        """
        try:
            document = json.loads(path.read_text())
            samples = [Sample(**sample) for sample in document.pop("samples")]
            return cls(**document, samples=samples)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has no results of the matrix: {error}") from error


def good(samples: Iterable[Sample]) -> list[Sample]:
    """Those with figures."""
    return [sample for sample in samples if not sample.error]
