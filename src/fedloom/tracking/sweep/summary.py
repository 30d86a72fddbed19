"""A sweep in numbers: every variant over its seeds, and how it differs from the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from fedloom.tracking.report.wording import lower_is_better, metric_label
from fedloom.tracking.sweep.results import Goal, RunResult
from fedloom.tracking.sweep.statistics import Estimate, estimate

__all__ = ["Point", "SweepSummary", "VariantResult", "summarise"]


@dataclass(frozen=True)
class ToGoal:
    """What reaching the goal took, on average over the seeds that reached it; exact: every round until then was judged."""

    seeds: int
    rounds: float | None
    bytes: float | None
    exact: bool
    clock: float | None = None
    """Virtual seconds, where there is a virtual clock."""


class Point(NamedTuple):
    """A variant where all its finished seeds were judged: over them, the metric and what was spent until then, on average."""

    round: int
    mean: float
    low: float
    high: float
    bytes: float
    passes: float | None
    clock: float | None = None


@dataclass(frozen=True)
class VariantResult:
    """One variant over its finished seeds; difference: to the baseline with the same seeds, verdict: what it says."""

    name: str
    changes: str
    runs: tuple[RunResult, ...]
    final: Estimate | None
    difference: Estimate | None
    verdict: str
    own: Estimate | None
    worst: Estimate | None
    goal: ToGoal | None
    up: float | None
    down: float | None
    seconds: float | None

    @property
    def finished(self) -> list[RunResult]:
        """The runs whose numbers count."""
        return [run for run in self.runs if run.status == "finished" and run.final is not None]

    @property
    def method(self) -> str:
        """Its method's title; empty where no run says."""
        return next((run.method for run in self.runs if run.method), "")

    def curve(self) -> list[Point]:
        """The rounds in which every finished seed was judged."""
        curves = [run.curve for run in self.finished]
        shared = sorted(set.intersection(*(set(curve.rounds) for curve in curves))) if curves else []
        points = []
        for round_ in shared:
            places = [curve.rounds.index(round_) for curve in curves]
            values, sent = zip(*((c.values[k], c.bytes[k]) for c, k in zip(curves, places, strict=True)), strict=True)
            passes = _mean([c.passes[k] for c, k in zip(curves, places, strict=True) if c.passes])
            clock = _mean([c.clock[k] for c, k in zip(curves, places, strict=True) if c.clock])
            mean, bytes_ = float(np.mean(values)), float(np.mean(sent))
            points.append(Point(round_, mean, min(values), max(values), bytes_, passes, clock))
        return points


@dataclass(frozen=True)
class SweepSummary:
    """A sweep as it stands: the variants, best first; those without a finished run come last."""

    name: str
    metric: str
    baseline: str
    goal: Goal | None
    seeds: tuple[int, ...]
    variants: tuple[VariantResult, ...]
    warnings: tuple[str, ...]

    @property
    def runs(self) -> list[RunResult]:
        """All runs."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def better(self) -> str:
        """Which way the metric is better."""
        return "lower" if lower_is_better(self.metric) else "higher"

    def count(self, *statuses: str) -> int:
        """How many runs stand so."""
        return sum(run.status in statuses for run in self.runs)

    def headline(self) -> str:
        """What came of it in one sentence, with what the intervals do not say."""
        from fedloom.tracking.report.wording import number, plural

        ranked = [v for v in self.variants if v.final]
        if not ranked:
            return "No run has finished yet."
        best = ranked[0]
        assert best.final is not None
        equal = [v.name for v in ranked if v.final and v.final.mean == best.final.mean]
        names = " and ".join(filter(None, (", ".join(equal[:-1]), equal[-1])))
        end = "ends" if len(equal) == 1 else "end"
        what = (
            f"{names} {end} with the best {metric_label(self.metric).lower()}: {number(best.final.mean, self.metric)}"
        )
        if len(ranked) == 1:
            return f"{what}."
        if best.final.low is None:
            return f"{what}, with one seed: how far the next seed would move it is not known."
        near = [v for v in ranked[1:] if v.final and overlap(best.final, v.final)]
        if not near:
            return f"{what} over {plural(best.final.n, 'seed')}; no other variant's interval reaches it."
        others = (
            f"those of {len(near)} of the {len(ranked) - 1} others" if len(ranked) > 2 else f"that of {near[0].name}"
        )
        return f"{what} over {plural(best.final.n, 'seed')}; its 95% interval overlaps with {others}."

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        variants = []
        for v in self.variants:
            entry = asdict(v) | {"runs": [asdict(run) | {"curve": run.curve._asdict()} for run in v.runs]}
            for key in ("final", "difference", "own", "worst"):
                value = getattr(v, key)
                entry[key] = value._asdict() if value else None
            for given, run in zip(entry["runs"], v.runs, strict=True):
                given["reached"] = run.reached._asdict() if run.reached else None
            variants.append(entry)
        return {
            "name": self.name,
            "metric": self.metric,
            "better": self.better,
            "baseline": self.baseline,
            "target": self.goal._asdict() if self.goal else None,
            "seeds": list(self.seeds),
            "variants": variants,
            "warnings": list(self.warnings),
        }


def summarise(
    name: str, metric: str, goal: Goal | None, changes: Mapping[str, str], runs: Sequence[RunResult]
) -> SweepSummary:
    """The sweep of these runs; `changes` holds every variant in words, the baseline first."""
    baseline = next(iter(changes))
    by_variant = {v: tuple(run for run in runs if run.variant == v) for v in changes}
    reference = {run.seed: run for run in by_variant[baseline] if run.status == "finished"}
    sign = 1.0 if lower_is_better(metric) else -1.0
    variants = [_variant(v, changes[v], by_variant[v], reference, sign, v == baseline, goal) for v in changes]
    order = {v: k for k, v in enumerate(changes)}
    variants.sort(key=lambda v: (v.final is None, sign * v.final.mean if v.final else 0.0, order[v.name]))
    seeds = tuple(dict.fromkeys(run.seed for run in runs))
    return SweepSummary(name, metric, baseline, goal, seeds, tuple(variants), tuple(_warnings(by_variant, reference)))


def overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals overlap; that of a single seed is not known, and taken to reach anywhere."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return True
    return one.low <= other.high and other.low <= one.high


def _variant(
    name: str,
    changes: str,
    runs: tuple[RunResult, ...],
    reference: Mapping[int, RunResult],
    sign: float,
    is_baseline: bool,
    goal: Goal | None,
) -> VariantResult:
    done = [run for run in runs if run.status == "finished" and run.final is not None]
    pairs = [(run.final, reference[run.seed].final) for run in done if run.seed in reference and not is_baseline]
    difference = estimate([a - b for a, b in pairs if a is not None and b is not None])
    return VariantResult(
        name,
        changes,
        runs,
        estimate([run.final for run in done if run.final is not None]),
        difference,
        "baseline" if is_baseline else _verdict(difference, sign),
        estimate([run.own for run in done if run.own is not None]),
        estimate([run.worst for run in done if run.worst is not None]),
        _to_goal(done) if goal else None,
        _mean([run.up for run in done]),
        _mean([run.down for run in done]),
        _mean([run.seconds for run in done]),
    )


def _verdict(difference: Estimate | None, sign: float) -> str:
    """What the interval of a difference says of it."""
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return "one seed"
    if difference.low == difference.high == 0:
        return "the same"
    if difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if sign * difference.mean < 0 else "worse"


def _to_goal(runs: Sequence[RunResult]) -> ToGoal:
    reached = [run.reached for run in runs if run.reached]
    rounds, sent = _mean([r.round for r in reached]), _mean([r.bytes for r in reached])
    return ToGoal(len(reached), rounds, sent, all(r.exact for r in reached), _mean([r.clock for r in reached]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _warnings(runs: Mapping[str, Sequence[RunResult]], reference: Mapping[int, RunResult]) -> list[str]:
    """Say where a variant was not made of the same rows, the same partition or the same weights as the baseline."""
    meanings = {
        "data": "was trained and judged on other rows",
        "partition": "had its rows divided over clients in another way",
        "base model": "started from other weights",
    }
    warnings = []
    for what, meaning in meanings.items():
        others = [
            name
            for name, own in runs.items()
            if any(
                run.digests[what] != reference[run.seed].digests[what]
                for run in own
                if run.status == "finished"
                and run.seed in reference
                and what in run.digests
                and what in reference[run.seed].digests
            )
        ]
        if others:
            warnings.append(
                f"{', '.join(others)} {meaning} than the baseline: the numbers are not strictly comparable."
            )
    return warnings
