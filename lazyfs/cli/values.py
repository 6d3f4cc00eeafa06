"""Values of options: sizes and times with suffixes, and how sizes are printed."""

import argparse
import re

from cache.freespace import MinFree

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def size(text: str) -> int:
    """Bytes from ``4MiB``, ``4M``, ``512k``, ``10GB`` (decimal) or ``1048576``.

    Raises:
        argparse.ArgumentTypeError: not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(ib|b)?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"not a size: {text!r} (write for example 4MiB)")
    number, unit, suffix = match.groups()
    factor = _DECIMAL[unit + "b"] if unit and suffix == "b" else _UNITS[unit]
    return int(float(number) * factor)


def min_free(text: str) -> MinFree:
    """What is to stay free of a disk, from ``2GiB`` or ``5%``; 0: nothing.

    Raises:
        argparse.ArgumentTypeError: neither a size nor a percentage below 100.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        return MinFree(size(text) or None)
    percent = float(match.group(1))
    if percent >= 100:
        raise argparse.ArgumentTypeError(f"not a part of a disk: {text!r} (write for example 5%)")
    return MinFree(percent=percent or None)


def seconds(text: str) -> float:
    """Seconds from ``30``, ``1.5``, ``500ms``, ``2m``; 0 means for ever.

    Raises:
        argparse.ArgumentTypeError: not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"not a time: {text!r} (write for example 30s)")
    factor = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[match.group(2)]
    return float(match.group(1)) * factor


def format_size(count: float) -> str:
    """``count`` bytes for a person, as ``3.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def printable(text: str) -> str:
    """``text`` with what a terminal could take for orders, or cannot show, as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
