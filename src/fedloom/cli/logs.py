"""`fedloom logs`: what a job of a federation has written down."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedloom.deployment.operator import Operator

__all__ = ["follow", "logs"]


def logs(
    job: Annotated[int, typer.Argument(help="The job's number, as `fedloom status` shows it.", show_default=False)],
    kit: Annotated[Path | None, typer.Option(help="Folder of the operator's kit; else FEDLOOM_KIT.")] = None,
    on: Annotated[bool, typer.Option("--follow", help="Go on until the job is over.")] = False,
) -> None:
    """Print the log of a job.

    Example: fedloom logs 3 --kit kits/operator --follow
    """
    from fedloom.deployment.operator import Operator, find_kit

    with Operator(find_kit(kit)) as operator:
        follow(operator, job, to_the_end=on)


def follow(operator: Operator, job: int, *, to_the_end: bool) -> dict[str, Any]:
    """Print a job's lines as they come; what was said last."""
    from fedloom.deployment.control import Logs

    after = 0
    while True:
        said = operator.ask(Logs(job=job, after=after))
        for line in said["lines"]:
            print(line, flush=True)
        more, after = said["next"] > after, said["next"]
        if not more and (said["over"] or not to_the_end):
            return said
        if not more:
            time.sleep(1)
