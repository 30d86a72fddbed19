"""From a sweep file to the runs it asks for, every one of them checked before the first begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom import api
from fedloom.config.document import Place
from fedloom.config.load import dump
from fedloom.config.schema import Experiment
from fedloom.config.sweep import SweepFile, Target, Variant, read_sweep
from fedloom.errors import ConfigError, Mistake

__all__ = ["Plan", "PlannedRun", "load_plan"]


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed: what `fedloom run` is given, and the resolved experiment that its folder will hold."""

    variant: str
    seed: int
    overrides: tuple[str, ...]
    config: str
    rounds: int

    @property
    def name(self) -> str:
        """The run's name, and its folder's."""
        return f"{self.variant}--seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, the first seed of every variant first; threads is what the most demanding run uses."""

    name: str
    file: Path
    base: Path
    runs: tuple[PlannedRun, ...]
    changes: Mapping[str, Mapping[str, Any]]
    """What each variant sets, in the order of the file: the first is the baseline."""
    metric: str
    target: Target | None
    threads: int
    device: str


def load_plan(path: Path | str) -> Plan:
    """Read a sweep file and every experiment it makes; no weights are read.

    Raises ConfigError with every mistake at once, named with the run it belongs to.
    """
    found = read_sweep(path)
    sweep = found.sweep
    experiments: dict[str, Experiment] = {}
    if sweep is not None:
        base = found.path.parent / sweep.base
        faults: dict[Mistake, list[Variant]] = {}
        for variant in found.variants:
            try:
                experiments[variant.name] = api.load(base, _assignments(variant, sweep.seeds[0]))
            except ConfigError as error:
                for mistake in error.mistakes:
                    faults.setdefault(mistake, []).append(variant)
        _report(found, faults)
        _check_target(found, base, experiments)
    document = found.document
    if document.mistakes or sweep is None:
        unique = dict.fromkeys(document.mistakes)
        raise ConfigError(str(found.path), sorted(unique, key=lambda mistake: mistake.line))
    runs = [_planned(v, seed, experiments[v.name]) for seed in sweep.seeds for v in found.variants]
    first = experiments[found.variants[0].name]
    return Plan(
        sweep.name,
        found.path,
        base,
        tuple(runs),
        {v.name: {key: value for key, value in v.overrides.items() if key not in sweep.set} for v in found.variants},
        first.evaluation.metric,
        sweep.target,
        max(e.engine.threads or 1 for e in experiments.values()),
        first.engine.device,
    )


def _assignments(variant: Variant, seed: int) -> list[str]:
    """`key=value` as the command takes them; JSON is YAML."""
    stated = dict(variant.overrides) | {"name": f"{variant.name}--seed-{seed}", "seed": seed}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in stated.items()]


def _planned(variant: Variant, seed: int, experiment: Experiment) -> PlannedRun:
    """The run of a seed; one thread where the experiment does not say how many."""
    overrides = _assignments(variant, seed)
    changes: dict[str, Any] = {"name": f"{variant.name}--seed-{seed}", "seed": seed}
    if experiment.engine.threads is None:
        overrides.append("engine.threads=1")
        changes["engine"] = experiment.engine.model_copy(update={"threads": 1})
    config = dump(experiment.model_copy(update=changes))
    return PlannedRun(variant.name, seed, tuple(overrides), config, experiment.federation.rounds)


def _check_target(found: SweepFile, base: Path, experiments: Mapping[str, Experiment]) -> None:
    """The target's metric must be one that the runs measure."""
    sweep = found.sweep
    if sweep is None or sweep.target is None or not found.variants or found.variants[0].name not in experiments:
        return
    assignments = [*_assignments(found.variants[0], sweep.seeds[0]), f"evaluation.metric={sweep.target.metric}"]
    try:
        api.load(base, assignments)
    except ConfigError as error:
        for mistake in error.mistakes:
            found.document.report(("target", "metric"), mistake.what, mistake.fix)


def _report(found: SweepFile, faults: Mapping[Mistake, Sequence[Variant]]) -> None:
    """Note the mistakes of the experiments where the sweep file makes them: in a run, in what all set, or in the base file."""
    for mistake, variants in faults.items():
        place = _origin(mistake.key, variants[0])
        everywhere = len(variants) == len(found.variants) and len(variants) > 1
        if not mistake.key or (not place and everywhere):
            line = f", line {mistake.line}" if mistake.line else ""
            where, place = f"base ({found.sweep.base if found.sweep else ''}{line})", ("base",)
        elif place[:1] == ("set",) and everywhere:
            where = "set"
        else:
            more = f" and {len(variants) - 1} more" if len(variants) > 1 else ""
            where = f"run {variants[0].name!r}{more}"
        key = ", ".join(part for part in (where, mistake.key) if part)
        line_number = found.document.line(place or variants[0].place)
        found.document.mistakes.append(Mistake(key, line_number, mistake.what, mistake.fix))


def _origin(key: str, variant: Variant) -> Place:
    """The place of the override that sets this key, or something in it; () where none does."""
    for override in sorted(variant.places, key=len, reverse=True):
        place = variant.places[override]
        if key == override or key.startswith((f"{override}.", f"{override}[")):
            inner = key[len(override) :].strip(".").partition("[")[0]
            return (*place, *inner.split(".")) if inner else place
        if override.startswith(f"{key}.") and key:
            return place
    return ()
