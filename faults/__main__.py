"""Break everything around a mount, and look what readers get.

Needs root: it mounts. Exit status 1 if anything was not as expected.

Examples:
  python -m faults
  python -m faults --list
  python -m faults --only wrong-bytes --only 429 --json
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from faults.model import Fault, Result
from faults.run import FAULTS, JOBS, TABLES, running


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name the faults, run none")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument(
        "--jobs", type=int, default=JOBS, metavar="N", help="so many at once (default: %(default)s)"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.only or ()) - {fault.name for fault in FAULTS})
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)} (--list names them)")
    return args


def main() -> int:
    """Run the suite and show what came of it."""
    args = arguments()
    chosen = [fault for fault in FAULTS if not args.only or fault.name in args.only]
    if args.list:
        show_list(chosen, as_json=args.json)
        return 0
    if os.geteuid() != 0:
        print("python -m faults: must be run by root: it mounts", file=sys.stderr)
        return 2
    began = time.monotonic()
    results = []
    console = Console(stderr=True)
    with running(chosen, max(1, args.jobs)) as futures, console.status("") as line:
        for number, future in enumerate(futures.values()):
            line.update(f"{number} of {len(chosen)} faults done")
            results.append(future.result())
    took_s = time.monotonic() - began
    wrong = [result for result in results if not result.agrees]
    if args.json:
        print(json.dumps([as_document(result) for result in results], indent=1))
    else:
        show_results(results)
        print(f"{len(results)} faults in {took_s:.0f} s, {len(wrong)} not as expected")
    for result in wrong:
        print(f"\n{result.fault.name}: {result.seen}\n{result.details}", file=sys.stderr)
    return 1 if wrong else 0


def as_document(result: Result) -> dict[str, object]:
    """A result for programs."""
    return {
        "fault": result.fault.name,
        "does": result.fault.does,
        "expected": result.fault.expected,
        "seen": result.seen,
        "seconds": round(result.took_s, 1),
        "agrees": result.agrees,
    }


def show_list(faults: Sequence[Fault], *, as_json: bool) -> None:
    """Names, what happens, what is expected."""
    if as_json:
        named = [{"fault": f.name, "does": f.does, "expected": f.expected} for f in faults]
        print(json.dumps(named, indent=1))
        return
    table = Table("fault", "does", "expected", box=None, padding=(0, 2, 0, 0))
    for fault in faults:
        table.add_row(fault.name, fault.does, fault.expected)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show_results(results: Sequence[Result]) -> None:
    """The table."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, faults in TABLES.items():
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
            seen = "as expected" if same else result.seen[:300]
            mark = "ok" if result.agrees else "DIFFERS"
            table.add_row(
                result.fault.name, result.fault.expected, seen, f"{result.took_s:.1f} s", mark
            )
        console.print(table, markup=False)
        console.print()


if __name__ == "__main__":
    sys.exit(main())
