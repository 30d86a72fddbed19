"""`fedloom resume`: go on after a stop or a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["resume"]


def resume(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with a run that was stopped or killed; it ends with the same bytes as if it had not been.

    Example: fedloom resume runs/quickstart
    """
    from fedloom import api
    from fedloom.cli.run import finish

    experiment = api.load_run(run)
    finish(experiment, lambda **told: api.resume(run, **told), as_json)
