"""What one run of a sweep came to, from its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedloom.algorithms import ALGORITHMS, resolve
from fedloom.config.document import parse
from fedloom.tracking.reading import RunFiles, is_number, is_run
from fedloom.tracking.report import summary
from fedloom.tracking.report.wording import lower_is_better, methods

__all__ = ["Curve", "Goal", "Reached", "RunResult", "differing", "flatten", "read_run"]


class Goal(NamedTuple):
    """A value of a metric to reach."""

    metric: str
    value: float


class Curve(NamedTuple):
    """A metric where it was judged: rounds, values, and until then the bytes sent both ways, the forward passes, the time."""

    rounds: tuple[int, ...]
    values: tuple[float, ...]
    bytes: tuple[float, ...]
    passes: tuple[float, ...] = ()
    """Over an example, of all clients; empty where some round does not say."""
    clock: tuple[float, ...] = ()
    """Virtual seconds; empty where there is no virtual clock."""


NOT_JUDGED = Curve((), (), ())


class Reached(NamedTuple):
    """When a goal was first seen to be reached; exact: the round before had been judged too."""

    round: int
    bytes: float
    exact: bool
    clock: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One variant with one seed. Bytes and seconds are means a round and sums; None where the run does not say."""

    name: str
    variant: str
    seed: int
    status: str = "waiting"
    failure: str | None = None
    before: float | None = None
    final: float | None = None
    own: float | None = None
    """The mean over the clients, each judged on its own rows (with its own vector, where it has one)."""
    worst: float | None = None
    """The mean of the worst tenth of them."""
    curve: Curve = NOT_JUDGED
    reached: Reached | None = None
    up: float | None = None
    down: float | None = None
    seconds: float | None = None
    digests: Mapping[str, str | None] = field(default_factory=dict)
    method: str = ""
    """What its algorithm is called, by its own title; the name in the file where it is a user's own."""


def read_run(
    path: Path, variant: str, seed: int, metric: str, goal: Goal | None, status: str, failure: str | None = None
) -> RunResult:
    """The result of a run as its directory holds it; what only its caller knows is where it stands, and why it failed."""
    name = path.name
    if not is_run(path) or status == "waiting":
        return RunResult(name, variant, seed, status, failure)
    run = RunFiles.open(path)
    own = [r for r in run.client_records() if r.get("evaluated") == "own" and is_number(r.get(metric))]
    last = max((int(r["round"]) for r in own), default=0)
    values = [float(r[metric]) for r in own if int(r["round"]) == last] if last else []
    manifest = run.manifest
    return RunResult(
        name,
        variant,
        seed,
        status,
        failure or manifest.get("failure") if status == "failed" else None,
        run.value(metric, "before"),
        run.value(metric, "after"),
        _mean(values),
        worst_tenth(values, metric),
        _curve(run, metric),
        _reached(run, goal) if goal else None,
        _mean(run.curve("bytes_up")[1]),
        _mean(run.curve("bytes_down")[1]),
        manifest.get("seconds") or summary.total(run, "seconds"),
        _digests(manifest),
        _title(manifest.get("algorithm")),
    )


def worst_tenth(values: list[float], metric: str) -> float | None:
    """The mean of the worst tenth, at least one."""
    ranked = sorted(values, reverse=lower_is_better(metric))
    return _mean(ranked[: max(1, round(0.1 * len(ranked)))])


def differing(one: str, other: str) -> list[str]:
    """The keys on which two resolved experiments disagree."""
    if one == other:
        return []
    a, b = flatten(parse(one).data), flatten(parse(other).data)
    return [key for key in dict.fromkeys([*a, *b]) if a.get(key, ...) != b.get(key, ...)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _digests(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """What a run was made of; rows that are pooled on purpose are no partition that could differ."""
    digests = {
        "data": (manifest.get("data") or {}).get("digest"),
        "base model": manifest.get("base_model_digest"),
    }
    known = [str(m.get("name")) for m in methods(manifest.get("algorithm")) if m.get("name") in ALGORITHMS]
    if not any(resolve(name, Path()).pooled for name in known):
        digests["partition"] = manifest.get("partition_digest")
    return digests


def _title(algorithm: Mapping[str, Any] | None) -> str:
    """Of several methods, all titles."""
    names = [str(method.get("name")) for method in methods(algorithm)]
    return " with ".join(resolve(name, Path()).title if name in ALGORITHMS else name for name in names)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _until(run: RunFiles, *keys: str) -> dict[int, float]:
    """The sum of these amounts until the end of each round."""
    each = (sum(float(r.get(key) or 0) for key in keys) for r in run.rounds)
    return dict(zip((int(r["round"]) for r in run.rounds), accumulate(each), strict=True))


def _curve(run: RunFiles, metric: str) -> Curve:
    rounds, values = run.curve(metric)
    sent, passes = _until(run, "bytes_up", "bytes_down"), _until(run, "forward_equivalents")
    told = all(is_number(r.get("forward_equivalents")) for r in run.rounds if r["round"])
    until = tuple(passes[r] for r in rounds) if told else ()
    clock = dict(zip(*run.curve("virtual_seconds"), strict=True)) | {0: 0.0}
    times = tuple(clock[r] for r in rounds) if len(clock) > 1 and all(r in clock for r in rounds) else ()
    return Curve(tuple(rounds), tuple(values), tuple(sent[r] for r in rounds), until, times)


def _reached(run: RunFiles, goal: Goal) -> Reached | None:
    curve = _curve(run, goal.metric)
    sign = -1.0 if lower_is_better(goal.metric) else 1.0
    for k, value in enumerate(curve.values):
        if sign * (value - goal.value) >= 0:
            exact = k == 0 or curve.rounds[k - 1] == curve.rounds[k] - 1
            return Reached(curve.rounds[k], curve.bytes[k], exact, curve.clock[k] if curve.clock else None)
    return None
