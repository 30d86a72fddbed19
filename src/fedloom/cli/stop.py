"""`fedloom stop`: end a job of a federation after its round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["stop"]


def stop(
    job: Annotated[int, typer.Argument(help="The job's number, as `fedloom status` shows it.", show_default=False)],
    kit: Annotated[Path | None, typer.Option(help="Folder of the operator's kit; else FEDLOOM_KIT.")] = None,
) -> None:
    """Finish a job's round, save it and end it; a job that waits is not begun.

    Example: fedloom stop 3 --kit kits/operator
    """
    from fedloom.deployment.control import Stop
    from fedloom.deployment.operator import Operator, find_kit

    with Operator(find_kit(kit)) as operator:
        said = operator.ask(Stop(job=job))
    print(f"job {said['job']}: {said['state']}")
