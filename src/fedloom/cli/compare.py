"""`fedloom compare RUN RUN ...`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedloom.tracking.compare import Comparison

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run directories.", metavar="RUN RUN ...")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write one HTML page with the curves overlaid.")
    ] = None,
) -> None:
    """Show runs side by side, and what differs between their files.

    Example: fedloom compare runs/fedavg runs/fedprox --html comparison.html
    """
    import json

    from fedloom.tracking.compare import compare as compare_runs
    from fedloom.tracking.compare import write_comparison

    comparison = compare_runs(runs)
    if html is not None:
        write_comparison(runs, html)
    if json_:
        typer.echo(json.dumps(comparison.as_dict(), indent=2))
        return
    _print(comparison)
    if html is not None:
        typer.echo(html)


def _print(comparison: Comparison) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedloom.tracking.report.wording import clean, count, duration, lower_is_better, metric_label, number, size

    console = Console()
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width to fit into
    metric = comparison.metric
    better = "lower" if lower_is_better(metric) else "higher"
    table = Table(
        title=f"{metric_label(metric)} ({better} is better)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("algorithm", overflow="fold", min_width=9)
    for name in ("rounds", "before", "after", "best", "worst 10%", "up", "down", "tokens", "time"):
        table.add_column(name, justify="right", overflow="fold")
    for row in comparison.rows:
        values = [number(v, metric) for v in (row.before, row.after, row.best, row.worst)]
        sums = [size(row.bytes_up), size(row.bytes_down), count(row.tokens), duration(row.seconds)]
        name = clean(row.name) + ("" if row.status == "finished" else f" ({row.status})")
        table.add_row(*(Text(t) for t in (name, clean(row.algorithm), count(row.rounds), *values, *sums)))
    console.print(table)
    if comparison.differences:
        differing = Table(title="What differs in their files", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("option", *(row.name for row in comparison.rows)):
            differing.add_column(Text(clean(heading)), overflow="fold")
        for difference in comparison.differences:
            differing.add_row(*(Text(clean(v)) for v in (difference.key, *difference.values)))
        console.print(differing)
    else:
        console.print("Their files differ in nothing but the name.")
    for warning in comparison.warnings:
        console.print(Text(f"Note: {warning}", style="yellow"))
