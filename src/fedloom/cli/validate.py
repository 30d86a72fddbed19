"""`fedloom validate`: every mistake of an experiment or a sweep file at once, with nothing loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedloom.config.schema import Experiment

__all__ = ["validate"]


def validate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="The experiment file, or a sweep's.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key.sub=value", help="Options of an experiment to change.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an experiment file, or a sweep's with every run it makes: all mistakes at once, each with its line and its fix.

    Nothing is loaded.

    Example: fedloom validate quickstart.yaml federation.rounds=3
    """
    from fedloom.api import load
    from fedloom.cli.console import print_json
    from fedloom.config.load import is_sweep, read_document
    from fedloom.errors import ConfigError

    try:
        if is_sweep(read_document(file).data):
            found, resolved = _sweep(file, overrides)
        else:
            experiment = load(file, overrides or ())
            found, resolved = _summary(experiment), {"experiment": experiment.model_dump(mode="json")}
    except ConfigError as error:
        if not as_json:
            raise
        mistakes = [{"key": m.key, "line": m.line or None, "what": m.what, "fix": m.fix} for m in error.mistakes]
        print_json({"file": str(file), "valid": False, "mistakes": mistakes})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print_json({"file": str(file), "valid": True, "mistakes": [], **resolved})
        return
    typer.echo(f"{file} is valid")
    width = max(10, *(len(name) for name, _ in found))
    for name, text in found:
        typer.echo(f"  {name:<{width}}  {text}")


def _sweep(file: Path, overrides: list[str] | None) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """A sweep in a few lines, and as data.

    Raises ConfigError with every mistake of every run.
    """
    from fedloom.cli.sweep import in_words
    from fedloom.errors import UsageError
    from fedloom.sweep import load_plan

    if overrides:
        fix = "write them in the file, under `set:`"
        raise UsageError("a sweep takes no overrides", where=" ".join(overrides), fix=fix)
    plan = load_plan(file)
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in plan.runs))
    lines = [
        ("name", plan.name),
        ("base", str(plan.base)),
        ("runs", str(len(plan.runs))),
        ("seeds", seeds),
        *((name, in_words(given)) for name, given in plan.changes.items()),
    ]
    runs = [{"name": r.name, "variant": r.variant, "seed": r.seed, "overrides": list(r.overrides)} for r in plan.runs]
    return lines, {"sweep": {"name": plan.name, "base": str(plan.base), "runs": runs}}


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
        *_devices(e),
        ("local", f"{work} of {e.local.batch_size} examples, {e.local.optimizer}, lr {e.local.lr:g}"),
        ("engine", f"{e.engine.kind}, device {e.engine.device}"),
    ]


def _devices(e: Experiment) -> list[tuple[str, str]]:
    """Who is selected and what they run on, where the file says."""
    chosen, wait = e.federation.selection, e.federation.wait
    lines = []
    if chosen["name"] != "uniform":
        lines.append(("selection", _line(chosen["name"], {k: v for k, v in chosen.items() if k != "name"})))
    if e.devices is not None:
        lines.append(("devices", _line(e.devices.kind, e.devices.model_dump(exclude={"kind"}))))
        lines.append(("wait", _line(wait.kind, wait.model_dump(exclude={"kind"})) if wait else "all"))
    return lines


def _line(head: str, options: dict[str, Any]) -> str:
    given = [f"{key} {value}" for key, value in options.items() if value not in (None, [])]
    return f"{head} ({', '.join(given)})" if given else head
