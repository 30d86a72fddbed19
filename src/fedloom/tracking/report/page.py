"""The page: summary and pictures of a run put into one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fedloom.files import write_atomic
from fedloom.tracking.reading import Record, RunFiles
from fedloom.tracking.report import summary, wording
from fedloom.tracking.report.costs import cost_figure, cost_rows
from fedloom.tracking.report.device_figure import device_tiles, timeline
from fedloom.tracking.report.distribution import distributions
from fedloom.tracking.report.drawing import CYCLE
from fedloom.tracking.report.figures import (
    Line,
    bytes_figure,
    curve_figure,
    deciles_figure,
    histogram_figure,
    metric_lines,
)
from fedloom.tracking.report.layer_figure import layer_figure
from fedloom.tracking.report.partition_figures import partition_figure

__all__ = ["Figure", "render", "write_report"]

MOST_EVENTS = 100
MOST_METRICS = 8
MOST_CONFIG = 200_000


class Figure(NamedTuple):
    """A picture with its heading and the sentence below it."""

    heading: str
    svg: str
    caption: str = ""
    narrow: str | None = None  # drawn for a telephone's width


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a run directory; the same run gives the same bytes.

    Raises `RunError` for a folder that is no run, or a damaged one.
    """
    run = RunFiles.open(run_dir)
    path = run.path / "report.html"
    write_atomic(path, render("report.html", _content(run)).encode("utf-8", "replace"))
    return path


def render(template: str, content: dict[str, Any]) -> str:
    """Fill one of the package's templates; everything but the pictures is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fedloom.tracking.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        n: getattr(wording, n)
        for n in ("count", "deviation", "number", "size", "duration", "clean", "shorten", "plural")
    }
    environment.filters["picture"] = Markup  # only ever given SVG drawn here, whose texts matplotlib has escaped
    return environment.get_template(template).render(content)


def _content(run: RunFiles) -> dict[str, Any]:
    results = summary.client_results(run)
    main, others = _curves(run)
    spread = distributions(results)
    sets = {one.label: one.values.tolist() for one in spread}
    after, before = sets.get("After training", []), sets.get("Before training", [])
    many = len(results.everyone) > 40
    return {
        "title": run.name,
        "run": run,
        "chip": _chip(run),
        "headline": summary.headline(run),
        "subtitle": summary.subtitle(run),
        "banner": summary.banner(run),
        "tiles": summary.tiles(run),
        "main": main,
        "others": others,
        "partition": partition_figure(run.partition),
        "results": results,
        "scale": bar_scale(results),
        "spread": spread if spread and len(spread[0].values) > 1 else [],
        "deciles": deciles_figure(spread, run.metric, "deciles"),
        "deciles_narrow": deciles_figure(spread, run.metric, "deciles-narrow", wide=False),
        "metric_label": wording.metric_label(run.metric),
        "better": "lower" if wording.lower_is_better(run.metric) else "higher",
        "histogram": histogram_figure(after, before, run.metric, "histogram") if many else None,
        "layers": layer_figure(run),
        "device_tiles": device_tiles(run),
        "timeline": timeline(run),
        "costs": cost_rows(run),
        "by_cost": cost_figure(run, "costs"),
        "by_cost_narrow": cost_figure(run, "costs-narrow", wide=False),
        "bytes": bytes_figure(run, "bytes"),
        "bytes_narrow": bytes_figure(run, "bytes-narrow", wide=False),
        "events": _events(run.events),
        "config": wording.clean_lines(run.config_text)[:MOST_CONFIG],
        "version": wording.clean(run.manifest.get("fedloom") or ""),
        "provenance": _provenance(run),
        "yardsticks": [k for k in ("local", "central") if run.yardstick(k)],
    }


def _chip(run: RunFiles) -> str:
    done, planned = summary.progress(run)
    early = " early" if run.status == "finished" and done < planned else ""
    return f"{run.status}{early}"


def _curves(run: RunFiles) -> tuple[Figure | None, list[Figure]]:
    """The watched metric in large, the other metrics, the training loss and the learning rate in small."""
    alone = run.yardstick("local")
    figures: list[Figure] = []
    apart = (
        f"eval_unseen_{run.metric.removeprefix('eval_')}"  # of the unseen clients' metrics, the watched one is enough
    )
    metrics = [m for m in run.metrics() if not m.startswith("eval_unseen_") or m == apart]
    for k, metric in enumerate([*metrics[:MOST_METRICS], "train_loss"]):
        wide = k == 0 and bool(metrics)
        spread = summary.spread_by_round(alone, metric) if alone and metric != "train_loss" else None
        lines = metric_lines(run, metric, spread)
        svg = curve_figure(lines, metric, f"curve{k}", wide=wide)
        if svg is None:
            continue
        better = "lower" if wording.lower_is_better(metric) else "higher"
        where = "on the rows trained on" if metric == "train_loss" else "on the held-out rows"
        where = "on the own rows of clients that never train" if metric.startswith("eval_unseen_") else where
        caption = f"{where}; {better} is better"
        if spread and wide:
            caption += ". The band holds the middle 80% of the models that the clients trained alone"
        if wide and any(line.level for line in lines):
            caption += ". A level line belongs to a run that was judged only at its end"
        narrow = curve_figure(lines, metric, f"narrow{k}") if wide else None
        figures.append(Figure(wording.metric_label(metric), svg, caption[0].upper() + caption[1:] + ".", narrow))
    rate = Line("", CYCLE[6], *run.curve("lr"))
    if len(set(rate.values)) > 1:
        svg = curve_figure([rate], "lr", "curve-lr")
        figures.append(Figure("Learning rate", svg or "", "The clients' learning rate in each round."))
    if metrics and figures:
        return figures[0], figures[1:]
    return None, figures


def bar_scale(results: summary.ClientResults) -> dict[str, float]:
    """The value that fills a bar in each column of the table of clients."""

    def most(name: str) -> float:
        return max((abs(getattr(c, name)) for c in results.shown if getattr(c, name) is not None), default=0.0) or 1.0

    metric = max(most(n) for n in ("before", "after", "alone"))
    return {"rows": most("rows"), "metric": metric, "train_loss": most("train_loss")}


class Events(NamedTuple):
    """What is listed, and what was not."""

    listed: list[Record]
    note: str


def _events(events: list[Record]) -> Events:
    """All events but routine checkpoints; of very many, the first and the last."""
    routine = [e for e in events if e.get("kind") == "checkpoint"]
    listed = [e for e in events if e.get("kind") != "checkpoint" or e is routine[-1]]
    notes = []
    if len(routine) > 1:
        notes.append(f"{len(routine) - 1:,} earlier checkpoints are not listed")
    if len(listed) > MOST_EVENTS:
        notes.append(
            f"{len(listed) - MOST_EVENTS:,} events between the first and the last {MOST_EVENTS // 2} are left out"
        )
        listed = [*listed[: MOST_EVENTS // 2], *listed[-MOST_EVENTS // 2 :]]
    text = "; ".join(notes)
    return Events(listed, f"{text[:1].upper()}{text[1:]}." if text else "")


def _provenance(run: RunFiles) -> list[tuple[str, str]]:
    """What identifies the run: versions, digests, seed, machine."""
    m, data = run.manifest, run.manifest.get("data") or {}
    versions = {"fedloom": m.get("fedloom"), **(m.get("versions") or {})}
    dropped = ", ".join(f"{reason}: {n:,}" for reason, n in (data.get("dropped") or {}).items())
    machine = [m.get("device"), f"{m['threads']} threads" if m.get("threads") else None]
    machine += [
        f"groups of {m['group_size']}" if m.get("group_size") else None,
        str(m.get("grouping") or "").replace("_", " "),
    ]
    rows = [
        ("Started", m.get("started")),
        ("Finished", m.get("finished")),
        ("Seed", m.get("seed")),
        ("Algorithm", wording.algorithm_line(m.get("algorithm"))),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)),
        ("Machine", ", ".join(str(p) for p in machine if p)),
        ("Data", data.get("source")),
        ("Rows", f"{data['rows']:,}" + (f" (dropped: {dropped})" if dropped else "") if data.get("rows") else None),
        ("Data digest", data.get("digest")),
        ("Partition digest", m.get("partition_digest")),
        ("Base model", m.get("model")),
        ("Base model digest", m.get("base_model_digest")),
        ("Trainable parameters digest", (m.get("trainable") or {}).get("digest")),
        ("Adapter SHA-256", m.get("adapter_sha256")),
    ]
    return [(label, wording.clean(value)) for label, value in rows if value is not None and value != ""]
