"""What a run cost its clients, in numbers and as pictures: bytes, forward passes, memory, and the metric against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fedloom.tracking.reading import Record, RunFiles, is_number
from fedloom.tracking.report.drawing import COLOURS, INK, sheet, to_svg
from fedloom.tracking.report.figures import HALF, WIDE, Line, few_ticks, label_ends, metric_ticks
from fedloom.tracking.report.wording import (
    algorithm_label,
    clock_unit,
    count,
    metric_label,
    number,
    short_count,
    shorten,
    size,
)

__all__ = ["CostRow", "Panel", "Subject", "cost_figure", "cost_panels", "cost_rows", "draw_panels", "spent"]

MOST_LABELS = 8
Write = Callable[[float | None], str]


class CostRow(NamedTuple):
    """One cost: on average for a client in a round, of the whole run, and at least and at most for a client in a round."""

    label: str
    mean: str
    whole: str
    least: str = ""
    most: str = ""


class Subject(NamedTuple):
    """A run to draw: its name and its colour."""

    label: str
    colour: str
    run: RunFiles
    dashed: bool = False


class Panel(NamedTuple):
    """The metric against one cost: what it is, how its amounts are written, a curve a run."""

    title: str
    write: Write
    lines: list[Line]
    unit: float = 1.0
    """The amount that ticks are multiples of."""


_COSTS: tuple[tuple[str, tuple[str, ...], Write], ...] = (
    ("Forward passes", ("forward_equivalents",), short_count),
    ("Bytes sent up", ("bytes_up",), size),
    ("Bytes sent up and down", ("bytes_up", "bytes_down"), size),
)


def cost_rows(run: RunFiles) -> list[CostRow]:
    """The rows of the table of costs; what a run has not recorded, or spent nothing of, has none."""
    spent_by_client: dict[str, list[float]] = {"bytes_up": [], "forward_equivalents": [], "directions": []}
    for record in run.client_records():
        if record.get("status") == "ok":
            for key, values in spent_by_client.items():
                if is_number(record.get(key)):
                    values.append(float(record[key]))
    asked = [r for r in run.rounds if is_number(r.get("bytes_down")) and r.get("clients", 0) + r.get("dropped", 0)]
    down = [r["bytes_down"] / (r["clients"] + r.get("dropped", 0)) for r in asked]
    rows = [
        _row("Sent up", spent_by_client["bytes_up"], size),
        _row("Sent down", down, size, sum(float(r["bytes_down"]) for r in asked)),
        _row("Forward passes", spent_by_client["forward_equivalents"], count),
        _row("Random directions", spent_by_client["directions"], count),
    ]
    return [row for row in [*rows, *_memory(run)] if row is not None]


def _row(label: str, values: Sequence[float], write: Write, whole: float | None = None) -> CostRow | None:
    if not any(values):
        return None
    whole = sum(values) if whole is None else whole
    mean, least, most = (write(v) for v in (sum(values) / len(values), min(values), max(values)))
    return CostRow(label, mean, short_count(whole) if write is count else write(whole), least, most)


def _memory(run: RunFiles) -> list[CostRow]:
    peaks = run.curve("peak_memory_bytes")[1]
    if not peaks:
        return []
    rows = [CostRow("Peak memory", "", size(max(peaks)))]
    weights = run.manifest.get("model_bytes")
    if is_number(weights) and weights:
        share = weights / max(peaks)
        written = f"{share:.0%}" if share >= 0.005 else "under 1%"
        rows.append(CostRow("Of it the model", "", f"{size(weights)}, {written}"))
    return rows


def spent(run: RunFiles, metric: str, keys: Iterable[str]) -> tuple[list[float], list[float]]:
    """What all clients had spent whenever the metric was judged, and its values: two lists of one length."""
    keys, total = tuple(keys), 0.0
    x: list[float] = []
    y: list[float] = []
    for record in run.rounds:
        total += sum(_amounts(record, keys))
        if is_number(record.get(metric)):
            x.append(total)
            y.append(float(record[metric]))
    return x, y


def _amounts(record: Record, keys: Iterable[str]) -> list[float]:
    return [float(record[key]) for key in keys if is_number(record.get(key))]


def cost_panels(runs: Sequence[Subject], metric: str) -> list[Panel]:
    """A panel for each cost of which some run spent anything while it was judged."""
    panels = []
    for title, keys, write in _COSTS:
        found = [Line(s.label, s.colour, *spent(s.run, metric, keys), dashed=s.dashed) for s in runs]
        lines = [line for line in found if len(line.rounds) > 1 and line.rounds[-1] > 0]
        if lines:
            panels.append(Panel(title, write, lines))
    found = [Line(s.label, s.colour, *_by_clock(s.run, metric), dashed=s.dashed) for s in runs]
    timed = [line for line in found if len(line.rounds) > 1]
    if timed:
        unit, word = clock_unit(max(line.rounds[-1] for line in timed))
        panels.insert(0, Panel(f"Virtual {word}", lambda v: f"{(v or 0.0) / unit:.3g}", timed, unit))
    return panels


def _by_clock(run: RunFiles, metric: str) -> tuple[list[float], list[float]]:
    """The virtual seconds at which the metric was judged, and its values."""
    own = [
        r for r in run.rounds if is_number(r.get(metric)) and (r["round"] == 0 or is_number(r.get("virtual_seconds")))
    ]
    return [float(r.get("virtual_seconds") or 0.0) for r in own], [float(r[metric]) for r in own]


def cost_figure(run: RunFiles, name: str, *, wide: bool = True) -> str | None:
    """The watched metric against each cost, side by side or, for a narrow page, one above the other."""
    runs = [Subject(algorithm_label(run.manifest.get("algorithm")) or "This run", COLOURS["run"], run)]
    for kind in ("local", "central"):
        if other := run.yardstick(kind):
            runs.append(Subject(algorithm_label(kind), COLOURS[kind], other, dashed=True))
    return draw_panels(cost_panels(runs, run.metric), run.metric, name, wide=wide)


def draw_panels(panels: Sequence[Panel], metric: str, name: str, *, wide: bool = True) -> str | None:
    """The panels as SVG, on one scale of the metric; None without one."""
    if not panels:
        return None
    width, height, beside, below = WIDE if wide else HALF, 168.0, 62.0, 66.0
    named = _legend(panels, width)
    top = 30.0 + (max(y for *_, y in named) + 24 if named else 0)
    if wide:  # side by side, else one above the other
        each = min(390.0, (width - 50) / len(panels) - beside)
        places = [(50 + k * (each + beside), top) for k in range(len(panels))]
    else:
        each = width - 50 - beside
        places = [(50.0, top + k * (height + below)) for k in range(len(panels))]
    whole = places[-1][1] + height + 32
    with sheet(width, whole) as figure:
        drawn: list[Any] = []
        for panel, (x, y) in zip(panels, places, strict=True):
            box = (x / width, (whole - y - height) / whole, each / width, height / whole)
            drawn.append(figure.add_axes(box, sharey=drawn[0] if drawn else None))
            _draw(drawn[-1], panel, 4 if each > 200 else 2)
            drawn[-1].tick_params(labelleft=len(drawn) == 1 or not wide)
        drawn[0].yaxis.set_major_formatter(metric_ticks(metric, drawn[0].get_ylim()))
        for panel, axes in zip(panels, drawn, strict=True):  # the scale is known now
            if len(panel.lines) <= MOST_LABELS:
                label_ends(figure, axes, panel.lines, [("", number(line.values[-1], metric)) for line in panel.lines])
        for label, colour, x, y in named:
            figure.text(x / width, 1 - (12 + y) / whole, label, va="center", color=colour, fontweight="bold")
        return to_svg(figure, f"{metric_label(metric)} by cost. {_said(panels, metric)}", name)


def _draw(axes: Any, panel: Panel, ticks: int) -> None:
    """The curves of one panel."""
    for line in reversed(panel.lines):
        style = (0, (5, 2.5)) if line.dashed else "-"
        marker = "o" if len(line.rounds) <= 30 else None
        axes.plot(line.rounds, line.values, color=line.colour, linestyle=style, marker=marker, markersize=3.8)
    most = max(line.rounds[-1] for line in panel.lines)
    axes.set_xlim(-0.02 * most, 1.02 * most)
    axes.margins(y=0.08)
    axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=9)
    axes.xaxis.set_major_locator(few_ticks(ticks))
    if panel.unit > 1:
        whole = few_ticks(ticks).tick_values(0, most / panel.unit)
        axes.set_xticks([panel.unit * tick for tick in whole if 0 <= tick <= 1.02 * most / panel.unit])
    axes.xaxis.set_major_formatter(lambda v, _: panel.write(v) if v else "0")
    axes.yaxis.set_major_locator(few_ticks())


def _legend(panels: Sequence[Panel], width: float) -> list[tuple[str, str, float, float]]:
    """Each run's name and colour with its place, in pixels from the left and from the top; nothing for a run alone."""
    named = {line.label: line.colour for panel in panels for line in panel.lines}
    placed, x, y = [], 50.0, 0.0
    for name, colour in named.items():
        label = shorten(name, 30)
        room = 7.4 * len(label)
        if x > 50 and x + room > width:
            x, y = 50.0, y + 20
        placed.append((label, colour, x, y))
        x += room + 22
    return placed if len(placed) > 1 else []


def _said(panels: Sequence[Panel], metric: str) -> str:
    """The panels in words."""
    return "; ".join(
        f"{panel.title}: {line.label} {number(line.values[-1], metric)} after {panel.write(line.rounds[-1])}"
        for panel in panels
        for line in panel.lines
    )
