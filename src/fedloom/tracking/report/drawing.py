"""A sheet to draw on and how it becomes inline SVG: one style, the same bytes for the same numbers.

Sizes are CSS pixels (a figure inch is 72 of them). Text stays text and takes the page's typeface; colours become CSS
variables, so that the page's light and dark themes both apply.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["COLOURS", "CYCLE", "INK", "MUTED", "PAPER", "sheet", "spread_apart", "to_svg", "write_picture"]

INK, MUTED, GRID, PAPER = "#1f2a37", "#5b6875", "#e3e8ee", "#ffffff"
# Blue, vermilion and bluish green: told apart with any colour vision, and dark enough to carry text.
COLOURS = {"run": "#0b5fa5", "local": "#b65a00", "central": "#00785a"}
CYCLE = ("#0b5fa5", "#b65a00", "#00785a", "#8f3f97", "#8a6d00", "#a3324b", "#46607a")
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper",
    **{colour: f"--c{k}" for k, colour in enumerate(CYCLE)},
}  # fmt: skip
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "fedloom",
    "text.parse_math": False,  # a client's id may hold a dollar sign
    "font.size": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
}


@contextmanager
def _style(text: str = "none") -> Iterator[None]:
    """The house style, free of the user's own matplotlib settings."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the glyphs that matplotlib's font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.fonttype": text})
        yield


@contextmanager
def sheet(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of so many pixels in the house style."""
    from matplotlib.figure import Figure

    with _style():
        yield Figure(figsize=(width / 72, height / 72), facecolor="none")


def to_svg(figure: Any, title: str, name: str) -> str:
    """The figure as an `<svg>` element: titled, without size, date, metadata or ids that another figure could share."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text).group(1))  # type: ignore[union-attr]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # they hold the drawn text, client ids included
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"\s*\n\s*", "\n", text)
    view = re.search(r'viewBox="[^"]*"', text)[0]  # type: ignore[index]
    start = f'<svg {view} style="--w:{width:.0f}px" role="img" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: f"{start}<title>{html.escape(title)}</title>", text, count=1).strip()


def write_picture(figure: Any, path: Path) -> None:
    """Write a figure with a white ground as .svg or .png, by the path's suffix, the same bytes for the same figure."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with _style(text="path"):  # a viewer of the file may not have the fonts
        figure.savefig(path, facecolor=PAPER, dpi=144, metadata=metadata)


def spread_apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved so that neighbours are at least `gap` apart, within [low, high] if that can hold them."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for _ in range(200):
        moved = False
        for j in range(len(placed) - 1):
            lack = gap - (placed[j + 1] - placed[j])
            if lack > 1e-3:
                placed[j] -= lack / 2
                placed[j + 1] += lack / 2
                moved = True
        if placed:
            placed[0], placed[-1] = max(placed[0], low), min(placed[-1], high)
        if not moved:
            break
    result = [0.0] * len(placed)
    for j, i in enumerate(order):
        result[i] = placed[j]
    return result
