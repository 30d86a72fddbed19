"""`fedloom eval`: judge a run's model, overall and client by client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    source: Annotated[
        str | None,
        typer.Option(help="Judge on all rows of this source instead, with the run's fields; a path starts from here."),
    ] = None,
    round: Annotated[int | None, typer.Option(help="Judge this round's checkpoint; the newest when left out.")] = None,
    generate: Annotated[
        int | None,
        typer.Option(min=1, help="Also let a language model write its own answers to so many rows: exact match."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Judge a run's model on the held-out rows and on each client's own, or on another source.

    Example: fedloom eval runs/quickstart
    """
    from fedloom import api
    from fedloom.evaluation.answers import that_writes
    from fedloom.evaluation.verdict import verdict

    if source is not None and Path(source).exists():  # else what starts from the experiment's folder, or a name
        source = str(Path(source).resolve())
    opened = api.open_run(run, round)
    prepared = opened.prepared if generate is None else that_writes(opened.prepared, generate)
    judged = verdict(prepared, opened.store, opened.progress, source)
    if as_json:
        print(json.dumps({"run": opened.path.name, "round": opened.progress.round, "judged": judged}, indent=1))
        return
    print(f"{opened.path.name}, after round {opened.progress.round}")
    for record in judged:
        figures = [
            f"{k.removeprefix('eval_').replace('_', ' ')} {v:.4f}" for k, v in record.items() if k.startswith("eval_")
        ]
        print(f"  {record['on']:28} {record['rows']:6} rows   {'   '.join(figures)}")
