"""`fedloom validate`: every mistake of an experiment file at once, with nothing loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedloom.config.schema import Experiment

__all__ = ["validate"]


def validate(
    file: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key.sub=value", help="Options to change.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an experiment file: every mistake at once, with its line and the fix; nothing is loaded.

    Example: fedloom validate quickstart.yaml federation.rounds=3
    """
    from fedloom.api import load
    from fedloom.cli.console import print_json
    from fedloom.errors import ConfigError

    try:
        experiment = load(file, overrides or ())
    except ConfigError as error:
        if not as_json:
            raise
        mistakes = [{"key": m.key, "line": m.line or None, "what": m.what, "fix": m.fix} for m in error.mistakes]
        print_json({"file": str(file), "valid": False, "mistakes": mistakes})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        resolved = experiment.model_dump(mode="json")
        print_json({"file": str(file), "valid": True, "mistakes": [], "experiment": resolved})
        return
    typer.echo(f"{file} is valid")
    for name, text in _summary(experiment):
        typer.echo(f"  {name:<10}  {text}")


def _summary(e: Experiment) -> list[tuple[str, str]]:
    """The experiment in a few lines."""
    adapter = e.adapter.model_dump()
    cohort = e.federation.clients_per_round or "all"
    work = f"{e.local.steps} steps" if e.local.steps else f"{e.local.epochs} epochs"
    weighting = e.federation.weighting
    weighing = _line(weighting.kind, weighting.model_dump(exclude={"kind"}))
    methods = [{k: v for k, v in e.algorithm.items() if k != "with"}, *e.algorithm.get("with", [])]
    return [
        ("name", f"{e.name}, seed {e.seed}"),
        ("model", f"{e.model.path}, {e.model.task}, {e.model.dtype}"),
        ("adapter", _line(str(adapter.pop("kind")), adapter)),
        ("data", f"{e.data.source}, {_line(e.data.partition.kind, e.data.partition.model_dump(exclude={'kind'}))}"),
        (
            "algorithm",
            " with ".join(_line(str(m["name"]), {k: v for k, v in m.items() if k != "name"}) for m in methods),
        ),
        ("federation", f"{e.federation.rounds} rounds of {cohort} clients, weighed by {weighing}"),
        ("local", f"{work} of {e.local.batch_size} examples, {e.local.optimizer}, lr {e.local.lr:g}"),
        ("engine", f"{e.engine.kind}, device {e.engine.device}"),
    ]


def _line(head: str, options: dict[str, Any]) -> str:
    given = [f"{key} {value}" for key, value in options.items() if value not in (None, [])]
    return f"{head} ({', '.join(given)})" if given else head
