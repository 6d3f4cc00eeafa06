"""The suite's output: for people, for programs, for the documentation."""

import sys
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from faults.model import Fault, Result

Tables: TypeAlias = Mapping[str, Sequence[Fault]]

WIDTH = 200
"""Of tables that do not go to a terminal."""
SEEN_LETTERS = 300


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def as_document(fault: Fault) -> dict[str, object]:
    """A fault for programs."""
    return {"fault": fault.name, "does": fault.does, "expected": fault.expected}


def as_result(result: Result) -> dict[str, object]:
    """A result for programs."""
    return {
        **as_document(result.fault),
        "seen": result.seen,
        "seconds": round(result.took_s, 1),
        "agrees": result.agrees,
    }


def as_markdown(tables: Tables) -> str:
    """All faults, as ``docs/faults.md`` has them."""
    lines = []
    for title, faults in tables.items():
        lines += [
            f"### {title[0].upper()}{title[1:]}",
            "",
            "| fault | what goes wrong | expected |",
        ]
        lines += [
            "|---|---|---|",
            *(f"| `{f.name}` | {f.does} | {f.expected} |" for f in faults),
            "",
        ]
    return "\n".join(lines)


def show_list(faults: Sequence[Fault]) -> None:
    """Names, what happens, what is expected."""
    table = Table("fault", "does", "expected", box=None, padding=(0, 2, 0, 0))
    for fault in faults:
        table.add_row(fault.name, fault.does, fault.expected)
    _console().print(table, markup=False)


def show_results(results: Sequence[Result], tables: Tables) -> None:
    """What was expected and what was seen."""
    console = _console()
    for title, faults in tables.items():
        rows = [result for result in results if result.fault in faults]
        if not rows:
            continue
        table = Table(
            *("fault", "expected", "seen", "time", ""),
            title=title,
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
        )
        for result in rows:
            same = result.seen == result.fault.expected
            seen = "as expected" if same else result.seen[:SEEN_LETTERS]
            mark = "ok" if result.agrees else "DIFFERS"
            table.add_row(
                result.fault.name, result.fault.expected, seen, f"{result.took_s:.1f} s", mark
            )
        console.print(table, markup=False)
        console.print()
