"""The pictures of a sweep: final values with their intervals, and curves by round, by bytes, by forward passes and by time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from fedloom.tracking.report.drawing import CYCLE, INK, MUTED, sheet, spread_apart, to_svg
from fedloom.tracking.report.wording import clock_unit, metric_label, number, short_count, shorten, size
from fedloom.tracking.sweep.summary import Point, SweepSummary, VariantResult

__all__ = ["By", "curves_figure", "finals_figure", "shown_in_colour"]

WIDE, HALF = 900.0, 440.0
By = Literal["rounds", "bytes", "passes", "clock"]
_AXES: dict[By, tuple[str, str]] = {
    "rounds": ("by round", "Round"),
    "bytes": ("by bytes sent", "Sent up and down, all clients"),
    "passes": ("by forward passes", "Forward passes over an example, all clients"),
    "clock": ("by virtual time", "Virtual"),
}
_FAR = 20.0  # by passes: where the least and the most differ by more, the scale is logarithmic


class _Line(NamedTuple):
    """A variant's curve: x, mean, lowest and highest over seeds; colour is None for one that is only background."""

    label: str
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    colour: str | None

    def after_start(self) -> _Line:
        """Without what was judged before anything was spent, which has no place on a logarithmic scale."""
        keep = [k for k, x in enumerate(self.x) if x > 0]
        x, mean, low, high = ([column[k] for k in keep] for column in self[1:5])
        return _Line(self.label, x, mean, low, high, self.colour)


def shown_in_colour(sweep: SweepSummary) -> dict[str, str]:
    """The variants whose curves are named: the baseline and the best, as many as there are colours."""
    names = [v.name for v in sweep.variants if v.finished]
    first = [name for name in names if name == sweep.baseline]
    chosen = [*first, *(name for name in names if name not in first)][: len(CYCLE)]
    return dict(zip(chosen, CYCLE, strict=False))


def finals_figure(sweep: SweepSummary, name: str, *, wide: bool = True) -> str | None:
    """Every variant's mean (dot), 95% interval (bar) and seeds (ticks), best on top; the dashed line is the baseline."""
    variants = [v for v in sweep.variants if v.final]
    if not variants:
        return None
    width, height = (WIDE if wide else HALF), 22.0 * len(variants) + 62
    left = 10 + 7.0 * max(len(shorten(v.name, 30 if wide else 18)) for v in variants)
    with sheet(width, height) as figure:
        axes = figure.add_axes((left / width, 44 / height, (width - left - 62) / width, (height - 54) / height))
        for y, v in enumerate(variants):
            _draw_final(axes, y, v, sweep)
        base = next((v.final for v in variants if v.name == sweep.baseline), None)
        if base:
            axes.axvline(base.mean, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        axes.set_ylim(len(variants) - 0.4, -0.6)
        axes.set_yticks(range(len(variants)), [shorten(v.name, 30 if wide else 18) for v in variants])
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.set_xlim(*_limits(variants, sweep.metric))
        axes.set_xlabel(metric_label(sweep.metric))
        axes.xaxis.set_major_locator(_few(6 if wide else 4))
        axes.xaxis.set_major_formatter(_ticks(sweep.metric, axes.get_xlim()))
        for tick in axes.get_yticklabels():
            tick.set_color(INK)
        ends = "; ".join(f"{v.name} {number(v.final.mean, sweep.metric)}" for v in variants if v.final)
        return to_svg(figure, f"{metric_label(sweep.metric)} after the last round: {ends}", name)


def _draw_final(axes: Any, y: int, v: VariantResult, sweep: SweepSummary) -> None:
    assert v.final is not None
    colour = CYCLE[1] if v.name == sweep.baseline else CYCLE[0]
    if v.final.low is not None:
        axes.hlines(y, v.final.low, v.final.high, color=colour, linewidth=6, alpha=0.25, zorder=2)
    seeds = [run.final for run in v.finished if run.final is not None]
    if len(seeds) > 1:
        axes.vlines(seeds, y - 0.22, y + 0.22, color=colour, linewidth=1.2, alpha=0.7, zorder=2.5)
    axes.plot([v.final.mean], [y], "o", color=colour, markersize=6.5, zorder=3)
    axes.annotate(
        number(v.final.mean, sweep.metric), (1.0, y), xycoords=("axes fraction", "data"), xytext=(8, 0),
        textcoords="offset points", va="center", color=colour, fontweight="bold", annotation_clip=False,
    )  # fmt: skip


def _limits(variants: Sequence[VariantResult], metric: str) -> tuple[float, float]:
    """All seeds and intervals; a share stays between 0 and 1."""
    values = [run.final for v in variants for run in v.finished if run.final is not None]
    values += [side for v in variants if v.final for side in (v.final.low, v.final.high) if side is not None]
    share = number(0.5, metric).endswith("%")
    low, high = (max(min(values), 0.0), min(max(values), 1.0)) if share else (min(values), max(values))
    room = 0.04 * (high - low) or 0.02
    return low - room, high + room


def curves_figure(sweep: SweepSummary, name: str, *, by: By = "rounds", wide: bool = True) -> str | None:
    """The metric against one cost: means over seeds, a band from the lowest to the highest seed.

    By forward passes there is a picture only where the variants took different numbers: else it is that by round.
    """
    lines = _lines(sweep, by)
    most = max((len(line.x) for line in lines), default=0)
    if most < 2 or not any(line.colour for line in lines):
        return None
    ends = [line.x[-1] for line in lines]
    if by == "passes" and max(ends) <= 1.01 * min(ends):
        return None
    logarithmic = by == "passes" and max(ends) > _FAR * min(ends)
    alone = {line.label for line in lines if len(line.x) <= 2 < most}
    lines = [line.after_start() for line in lines] if logarithmic else lines
    named = [line for line in lines if line.colour]
    width, height = (WIDE, 380.0) if wide else (HALF, 300.0)
    texts = [f"{shorten(line.label, 24 if wide else 14)} {number(line.mean[-1], sweep.metric)}" for line in named]
    room = 18 + 7.4 * max(map(len, texts))
    with sheet(width, height) as figure:
        axes = figure.add_axes((54 / width, 44 / height, (width - 54 - room) / width, (height - 60) / height))
        for line in reversed(lines):
            _draw(axes, line, alone=line.label in alone)
        _frame(axes, sweep, by, lines, logarithmic)
        _label(figure, axes, named, texts)
        return to_svg(figure, f"{metric_label(sweep.metric)} {_AXES[by][0]}: {'; '.join(texts)}", name)


def _spent(point: Point, by: By) -> float | None:
    return {"rounds": float(point.round), "bytes": point.bytes, "passes": point.passes, "clock": point.clock}[by]


def _lines(sweep: SweepSummary, by: By) -> list[_Line]:
    """What spent nothing, or does not say, has no curve by it."""
    colours = shown_in_colour(sweep)
    lines = []
    for v in sweep.variants:
        points = v.curve()
        x = [spent for point in points if (spent := _spent(point, by)) is not None]
        if not x or (by != "rounds" and not x[-1]):
            continue
        mean, low, high = ([getattr(p, key) for p in points] for key in ("mean", "low", "high"))
        lines.append(_Line(v.name, x, mean, low, high, colours.get(v.name)))
    return lines


def _draw(axes: Any, line: _Line, alone: bool) -> None:
    """A curve with its band; one that was judged only before and after is the dot at its end."""
    if line.colour is None:
        axes.plot(line.x[-1 if alone else 0 :], line.mean[-1 if alone else 0 :], color=MUTED, alpha=0.3, linewidth=1,
                  marker="." if alone else None, zorder=1.2)  # fmt: skip
        return
    if alone:
        axes.vlines(line.x[-1], line.low[-1], line.high[-1], color=line.colour, linewidth=6, alpha=0.2, zorder=1.5)
        axes.plot(line.x[-1:], line.mean[-1:], "D", color=line.colour, markersize=6, zorder=2.6)
        return
    axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.13, linewidth=0, zorder=1.5)
    axes.plot(line.x, line.mean, color=line.colour, marker="o" if len(line.x) <= 30 else None, markersize=3.5, zorder=2)


def _frame(axes: Any, sweep: SweepSummary, by: By, lines: Sequence[_Line], logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    least, most = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    axes.margins(y=0.06)
    unit, word = clock_unit(most) if by == "clock" else (1.0, "")
    axes.set_xlabel(f"{_AXES[by][1]} {word}".rstrip() + (", by powers of ten" if logarithmic else ""))
    if logarithmic:
        axes.set_xscale("log")
        room = (most / least) ** 0.02
        axes.set_xlim(least / room, most * room)
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(-0.02 * most, 1.02 * most)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=by == "rounds"))
    if by == "clock":
        axes.set_xticks([unit * tick for tick in _few(7).tick_values(0, most / unit) if tick <= 1.02 * most / unit])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    elif by != "rounds":
        write = size if by == "bytes" else short_count
        axes.xaxis.set_major_formatter(lambda value, _: write(value) if value else "0")
    if sweep.goal and sweep.goal.metric == sweep.metric:
        axes.axhline(sweep.goal.value, color=INK, linestyle=(0, (2, 3)), linewidth=1.1, zorder=1.1)
    axes.yaxis.set_major_locator(_few(6))
    axes.yaxis.set_major_formatter(_ticks(sweep.metric, axes.get_ylim()))


def _label(figure: Any, axes: Any, lines: Sequence[_Line], texts: Sequence[str]) -> None:
    """Name and last value right of the picture, at the height of each curve's end, moved apart where they would overlap."""
    scale = 72.0 / figure.dpi
    box = axes.get_window_extent()
    ends = [axes.transData.transform((line.x[-1], line.mean[-1]))[1] * scale for line in lines]
    places = spread_apart(ends, 16.0, box.y0 * scale + 4, box.y1 * scale - 4)
    for line, text, y in zip(lines, texts, places, strict=True):
        axes.annotate(
            text, (1.0, (y - box.y0 * scale) / (box.height * scale)), xycoords="axes fraction", xytext=(8, 0),
            textcoords="offset points", va="center", color=line.colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _few(most: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10])


def _ticks(metric: str, limits: tuple[float, float]) -> Callable[[float, int], str] | Any:
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    if number(0.5, metric).endswith("%"):
        return PercentFormatter(1.0, decimals=0 if limits[1] - limits[0] > 0.06 else 1)
    return ScalarFormatter(useOffset=False)
