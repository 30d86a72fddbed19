"""The comparison page of a sweep: one HTML file that needs nothing else, and the same numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedloom.files import write_atomic
from fedloom.tracking.report.page import Figure, render
from fedloom.tracking.report.summary import Tile
from fedloom.tracking.report.wording import MISSING, duration, metric_label, number, plural, size
from fedloom.tracking.sweep.figures import By, curves_figure, finals_figure, shown_in_colour
from fedloom.tracking.sweep.statistics import Estimate
from fedloom.tracking.sweep.summary import SweepSummary, ToGoal, VariantResult

__all__ = ["cells", "columns", "write_comparison"]


def write_comparison(sweep: SweepSummary, folder: Path) -> Path:
    """Write `comparison.html` and `comparison.json`; the same results give the same bytes."""
    path = folder / "comparison.html"
    write_atomic(folder / "comparison.json", json.dumps(sweep.as_dict(), indent=1))
    write_atomic(path, render("sweep.html", _content(sweep)).encode("utf-8", "replace"))
    return path


def columns(sweep: SweepSummary) -> list[str]:
    """The headings of the table, the variant's aside."""
    heads = [metric_label(sweep.metric), f"against {sweep.baseline}", "", "on clients' own rows", "worst 10%"]
    if sweep.goal:
        heads += ["rounds to target", "bytes to target"] + ["time to target"] * _timed(sweep)
    return [*heads, "up a round", "down a round", "time a run"]


def cells(sweep: SweepSummary, v: VariantResult) -> list[str]:
    """A variant's row of the table, in words."""
    row = [_with_interval(v.final, sweep.metric), _difference(v.difference, sweep.metric), v.verdict]
    row += [_with_interval(v.own, sweep.metric), _with_interval(v.worst, sweep.metric)]
    if sweep.goal:
        row += _goal(v.goal, len(v.finished), timed=_timed(sweep))
    return [*row, size(v.up), size(v.down), duration(v.seconds)]


def _with_interval(value: Estimate | None, metric: str) -> str:
    if value is None:
        return MISSING
    return number(value.mean, metric) + (f" ± {_width(value.half, metric)}" if value.half is not None else "")


def _difference(value: Estimate | None, metric: str) -> str:
    """+1.3 ± 0.8, in points where the metric is a share."""
    if value is None:
        return MISSING
    sign = "+" if value.mean > 0 else "−" if value.mean < 0 else ""
    half = f" ± {_width(value.half, metric)}" if value.half is not None else ""
    return f"{sign}{_width(abs(value.mean), metric)}{half}"


def _width(value: float, metric: str) -> str:
    """A length on the metric's axis, without the unit."""
    return f"{100 * value:.1f}" if number(0.5, metric).endswith("%") else number(value)


def _timed(sweep: SweepSummary) -> bool:
    """Whether some run has a virtual clock."""
    return any(run.curve.clock for run in sweep.runs)


def _goal(goal: ToGoal | None, seeds: int, timed: bool) -> list[str]:
    if goal is None or not seeds:
        return [MISSING, MISSING] + [MISSING] * timed
    if goal.rounds is None:
        return ["not reached", MISSING] + [MISSING] * timed
    some = f" ({goal.seeds} of {seeds})" if goal.seeds < seeds else ""
    most = "" if goal.exact else "≤ "
    rounds = f"{goal.rounds:.0f}" if goal.rounds == round(goal.rounds) else f"{goal.rounds:.1f}"
    clock = [MISSING if goal.clock is None else f"{most}{duration(goal.clock)}"] * timed
    return [f"{most}{rounds}{some}", f"{most}{size(goal.bytes)}" if goal.bytes else "none", *clock]


def _content(sweep: SweepSummary) -> dict[str, Any]:
    colours = shown_in_colour(sweep)
    grey = len([v for v in sweep.variants if v.finished]) - len(colours)
    return {
        "title": sweep.name,
        "sweep": sweep,
        "headline": sweep.headline(),
        "tiles": _tiles(sweep),
        "unfinished": sweep.count("waiting", "running", "stopped"),
        "columns": columns(sweep),
        "rows": [(v, cells(sweep, v)) for v in sweep.variants],
        "notes": _notes(sweep),
        "finals": _finals(sweep),
        "figures": _curves(sweep, grey),
        "failed": [run for run in sweep.runs if run.status == "failed"],
        "metric_label": metric_label(sweep.metric),
    }


def _tiles(sweep: SweepSummary) -> list[Tile]:
    total = len(sweep.runs)
    done, failed = sweep.count("finished"), sweep.count("failed")
    seconds = sum(run.seconds or 0 for run in sweep.runs)
    tiles = [
        Tile("Variants", str(len(sweep.variants)), f"baseline: {sweep.baseline}"),
        Tile("Seeds", str(len(sweep.seeds)), ", ".join(map(str, sweep.seeds[:8]))),
        Tile("Runs finished", f"{done:,} of {total:,}", f"{failed:,} failed" if failed else ""),
        Tile("Training time", duration(seconds), "the sum over all runs"),
    ]
    if sweep.goal:
        reached = sum(bool(v.goal and v.goal.seeds == len(v.finished) > 0) for v in sweep.variants)
        label = f"{metric_label(sweep.goal.metric)} of {number(sweep.goal.value, sweep.goal.metric)}"
        tiles.append(Tile("Reach the target", f"{reached} of {len(sweep.variants)}", label))
    return tiles


def _notes(sweep: SweepSummary) -> list[str]:
    """How the numbers are to be read."""
    points = ", in points" if number(0.5, sweep.metric).endswith("%") else ""
    notes = [f"{sweep.better.capitalize()} is better."]
    if len(sweep.seeds) == 1:
        notes.append(
            "Every variant was run with one seed: there are no intervals, and small differences mean nothing. More "
            "seeds in the sweep's file give them."
        )
    else:
        notes.append(
            f"± is half of the 95% interval of the mean over seeds (Student's t){points}. Differences are taken seed by seed, "
            f"so they can be told more surely than the intervals beside them suggest; “not told apart”: the "
            f"interval of the difference holds 0."
        )
    others = sum(v.difference is not None and v.difference.n > 1 for v in sweep.variants)
    if others >= 10:
        notes.append(
            f"Of {others} differences about {max(1, round(others / 20))} would be told apart by chance alone, were all variants "
            f"equal: treat a single narrow one with care."
        )
    notes.append(
        f"{metric_label(sweep.metric)} is that on the held-out rows, which all share; where a method gives every client a vector "
        f"of its own, the mean over these. On clients' own rows: the mean over the clients, each judged on rows like those it "
        f"trains on, which is what such methods aim at. Worst 10%: the mean of the worst tenth of them."
    )
    if sweep.goal:
        goal = f"{metric_label(sweep.goal.metric).lower()} of {number(sweep.goal.value, sweep.goal.metric)}"
        notes.append(
            f"To target: until the {goal} was first seen, on average over the seeds that reached it; ≤ where not every round was "
            f"judged." + (" Time is that of the virtual clock." if _timed(sweep) else "")
        )
    return notes


def _finals(sweep: SweepSummary) -> Figure | None:
    svg = finals_figure(sweep, "finals")
    if svg is None:
        return None
    dots = "Dot: mean; bar: 95% interval; ticks: the seeds. " if len(sweep.seeds) > 1 else ""
    caption = f"{dots}The dashed line is the baseline, {sweep.baseline}."
    return Figure(
        f"{metric_label(sweep.metric)} after the last round",
        svg,
        caption,
        finals_figure(sweep, "finals-narrow", wide=False),
    )


def _curves(sweep: SweepSummary, grey: int) -> list[Figure]:
    """By round, by bytes, by forward passes and by time."""
    figures = []
    headings: dict[By, tuple[str, str]] = {
        "rounds": ("by round", ""),
        "bytes": ("by bytes sent", " Variants that send nothing are left out."),
        "passes": ("by forward passes", " A step of backpropagation through the whole model counts three."),
        "clock": ("by virtual time", " As long as the clients' devices take."),
    }
    band = "The band spans the seeds. " if len(sweep.seeds) > 1 else ""
    others = f"In grey: {plural(grey, 'other variant')}. " if grey else ""
    for by, (heading, said) in headings.items():
        svg = curves_figure(sweep, by, by=by)
        if svg is None:
            continue
        caption = f"{band}{others}A diamond is a variant judged only at its end.{said}"
        narrow = curves_figure(sweep, f"{by}-narrow", by=by, wide=False)
        figures.append(Figure(f"{metric_label(sweep.metric)} {heading}", svg, caption, narrow))
    return figures
