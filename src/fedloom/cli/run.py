"""`fedloom run`: the main job."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedloom.api import Run
    from fedloom.config.schema import Experiment

__all__ = ["run"]


def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, `key.sub=value`.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run directories go.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, measure one step, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a federation.

    Example: fedloom run examples/quickstart.yaml federation.rounds=3
    """
    from fedloom import api

    loaded = api.load(experiment, overrides or [])
    if dry_run:
        from fedloom.cli.plan import plan, show_plan

        facts = plan(loaded)
        print(json.dumps(facts, indent=1) if as_json else show_plan(facts))
        return
    if loaded.engine.kind == "remote":
        hand_over(loaded, loaded.engine.kit, as_json)
        return
    finish(loaded, lambda **told: api.run(loaded, out, **told), as_json)


def hand_over(experiment: Experiment, kit: str | None, as_json: bool) -> None:
    """Give an experiment to the coordinator of a federation, and follow it; Ctrl-C ends the following, not the job."""
    from secrets import token_hex

    from fedloom.cli.logs import follow
    from fedloom.config.load import dump
    from fedloom.deployment.control import Submit
    from fedloom.deployment.operator import Operator, find_kit
    from fedloom.errors import RunError

    with Operator(find_kit(kit)) as operator:
        said = operator.ask(Submit(name=experiment.name, text=dump(experiment), key=token_hex(16)))
        job = said["job"]
        if as_json:
            print(json.dumps(said, indent=1))
            return
        print(f"job {job}; look at it with: fedloom status, fedloom logs {job}; end it with: fedloom stop {job}")
        try:
            said = follow(operator, job, to_the_end=True)
        except KeyboardInterrupt:
            print(f"job {job} goes on at the coordinator", file=sys.stderr)
            raise
    if said["state"] == "failed":
        raise RunError(f"job {job} failed", why=said["error"])
    print(f"job {job} {said['state']}" + (f"; its run: {said['run']}" if said.get("run") else ""))


def finish(experiment: Experiment, go: Callable[..., Run], as_json: bool) -> None:
    """Run with a live line a round, then say what came of it; leaves with 130 when it was interrupted."""
    from fedloom.cli.live import Live, interruptible

    live = Live(experiment.federation.rounds, experiment.evaluation.metric)
    try:
        with interruptible() as asked:
            result = go(listeners=[live], stop_asked=asked)
    finally:
        live.close()
    print(json.dumps({"run": str(result.path)} | result.manifest, indent=1) if as_json else _summary(result))
    if not result.finished:
        print(f"stopped; go on with: fedloom resume {_short(result.path)}", file=sys.stderr)
        raise typer.Exit(130)


def _summary(result: Run) -> str:
    """The metrics before and after, the yardsticks, and where to look."""
    manifest, path = result.manifest, result.path
    lines = ["", f"{manifest['name']}: {manifest['rounds_done']} of {manifest['rounds']} rounds"]
    columns: list[tuple[str, dict[str, Any]]] = [
        ("before", manifest.get("before") or {}),
        ("after", manifest.get("after") or {}),
    ]
    for name, label in (("local", "each client alone"), ("central", "all data pooled")):
        file = path / "yardsticks" / name / "manifest.json"
        if file.exists():
            columns.append((label, json.loads(file.read_text()).get("after") or {}))
    for key in columns[0][1]:
        cells = [f"{label} {values[key]:.4f}" for label, values in columns if key in values]
        lines.append(f"  {key.removeprefix('eval_').replace('_', ' '):15} " + "   ".join(cells))
    if (path / "adapter").exists():
        lines.append(f"adapter: {_short(path / 'adapter')}")
    lines.append(f"report:  {_short(path / 'report.html')}")
    return "\n".join(lines)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
