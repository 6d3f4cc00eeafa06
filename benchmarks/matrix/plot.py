"""Draws the plot: a grid of lines, round-trip times across, bandwidths down. Pure, SVG as text."""

from collections.abc import Collection, Mapping
from html import escape
from typing import NamedTuple

from benchmarks.matrix.plan import Cell

BAR_PX = 15
GAP_PX = 4
PANEL_PX = 270
NAME_PX = 95
FIGURE_PX = 48
MARGIN_PX = 14
HEAD_PX = 60
TITLE_PX = 22
OUR_COLOUR, THEIR_COLOUR = "#2a6fb0", "#b8b8b8"


class Panel(NamedTuple):
    """The bars of one line: seconds by contender, from above."""

    bars: Mapping[str, float]


def drawing(title: str, panels: Mapping[Cell, Panel], ours: Collection[str]) -> str:
    """An SVG of all panels; bars are to scale within a panel."""
    across = sorted({cell.rtt_ms for cell in panels})
    down = sorted({cell.mbit for cell in panels})
    rows = max((len(panel.bars) for panel in panels.values()), default=0)
    height = rows * (BAR_PX + GAP_PX) + TITLE_PX + MARGIN_PX
    width_px = len(across) * (PANEL_PX + MARGIN_PX) + MARGIN_PX
    height_px = len(down) * height + HEAD_PX
    box = f'width="{width_px}" height="{height_px}" viewBox="0 0 {width_px} {height_px}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="11">',
        f'<rect width="{width_px}" height="{height_px}" fill="white"/>',
        _text(MARGIN_PX, 24, title, 'font-size="15"'),
        _text(MARGIN_PX, 44, "Bars are to scale within each panel; blue: lazyfs.", ""),
    ]
    for cell, panel in panels.items():
        left = MARGIN_PX + across.index(cell.rtt_ms) * (PANEL_PX + MARGIN_PX)
        top = HEAD_PX + down.index(cell.mbit) * height
        parts += _panel(left, top, cell, panel, ours)
    return "\n".join([*parts, "</svg>\n"])


def _panel(left: int, top: int, cell: Cell, panel: Panel, ours: Collection[str]) -> list[str]:
    title = f"{cell.rtt_ms:g} ms, {cell.mbit:g} Mbit/s"
    parts = [_text(left, top + 12, title, 'font-weight="bold"')]
    longest = max(panel.bars.values(), default=1.0)
    room = PANEL_PX - NAME_PX - FIGURE_PX
    for number, (name, seconds) in enumerate(panel.bars.items()):
        y = top + TITLE_PX + number * (BAR_PX + GAP_PX)
        width = max(seconds / longest * room, 1)
        colour = OUR_COLOUR if name in ours else THEIR_COLOUR
        end = left + NAME_PX
        parts.append(_text(end - 5, y + 11, name, 'text-anchor="end"'))
        parts.append(
            f'<rect x="{end}" y="{y}" width="{width:.1f}" height="{BAR_PX}" fill="{colour}"/>'
        )
        parts.append(_text(end + width + 4, y + 11, f"{seconds:.3g}", ""))
    return parts


def _text(x: float, y: float, words: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(words)}</text>'
