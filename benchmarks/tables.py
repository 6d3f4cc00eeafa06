"""The commands that measure into a folder and print tables: their arguments, start and end."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import images
from benchmarks.report import PLAIN_WIDTH, Grid, markdown, show
from benchmarks.system import INTERRUPTS, BenchmarkError, tidy


def arguments(program: str, description: str | None) -> argparse.ArgumentParser:
    """What all of them take."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser


def print_tables(args: argparse.Namespace, measure: Callable[[Path], Sequence[Grid]]) -> int:
    """Print what ``measure`` finds, given a folder for its files; the exit status."""
    if os.geteuid() != 0:
        print("benchmarks: must be run by root", file=sys.stderr)
        return 2
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)
    images.KEPT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=images.KEPT))
    try:
        grids = measure(folder)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    finally:
        tidy(folder)
    console = Console() if Console().is_terminal else Console(width=PLAIN_WIDTH)
    for grid in grids:
        if args.markdown:
            print(f"\n{grid.title}:\n\n{markdown(grid)}")
        else:
            show(console, grid)
    return 0
