"""`fedloom report RUN`: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="The run directory.", metavar="RUN")],
    open_: Annotated[bool, typer.Option("--open", help="Also open the page in the browser.")] = False,
) -> None:
    """Write RUN/report.html: curves, clients, partition, bytes, events. It needs no network, and can be mailed.

    Example: fedloom report runs/quickstart --open
    """
    from fedloom.tracking.report import write_report

    path = write_report(run)
    typer.echo(path)
    if open_:
        typer.launch(path.resolve().as_uri())
