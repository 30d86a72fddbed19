"""`fedloom report RUN`: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="The run directory.", metavar="RUN")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw the learning curves alone, as .svg or .png.", show_default=False)
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Also open the page in the browser.")] = False,
) -> None:
    """Write RUN/report.html: curves, clients, partition, bytes, events. It needs no network, and can be mailed.

    Example: fedloom report runs/quickstart --open
    """
    from fedloom.tracking.report import hero_picture, write_report

    path = write_report(run)
    typer.echo(path)
    if picture:
        typer.echo(hero_picture(run, picture))
    if open_:
        typer.launch(path.resolve().as_uri())
