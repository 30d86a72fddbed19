"""Rules on judging models, and on what hangs on it."""

from __future__ import annotations

from collections.abc import Iterator

from fedloom.config.rules.rule import Facts, Finding, rule, unjudged
from fedloom.config.schema import Experiment
from fedloom.errors import nearest

__all__: list[str] = []


@rule("federation.early_stopping", "evaluation", "data.held_out")
def _early_stopping(e: Experiment, _: Facts) -> Iterator[Finding]:
    if e.federation.early_stopping is None:
        return
    if e.evaluation.every == 0:
        what = "early stopping needs evaluations, and evaluation.every is 0"
        yield Finding("federation.early_stopping", what, "Set evaluation.every: 1")
    elif unjudged(e):
        key = _judged_by(e)
        what = f"early stopping watches {e.evaluation.metric}, and {key} is 0"
        yield Finding("federation.early_stopping", what, f"Set {key}: 0.1, or evaluation.metric: train_loss")


@rule("checkpoints", "evaluation", "data.held_out")
def _best(e: Experiment, _: Facts) -> Iterator[Finding]:
    if e.checkpoints.adapter != "best":
        return
    key, fix = "checkpoints.adapter", "Set adapter: last"
    if not e.checkpoints.keep_best:
        yield Finding(key, "the best round is not kept, because keep_best is false", f"{fix}, or keep_best: true")
    elif e.evaluation.every == 0:
        yield Finding(key, "no round is judged, because evaluation.every is 0", f"{fix}, or evaluation.every: 1")
    elif unjudged(e):
        yield Finding(key, f"no round is judged, because {_judged_by(e)} is 0", f"{fix}, or {_judged_by(e)}: 0.1")


def _judged_by(e: Experiment) -> str:
    """The share of rows that models are judged on: clients elsewhere judge on their own."""
    return "data.validation" if e.engine.kind == "remote" else "data.held_out"


@rule("evaluation.metric", "evaluation.generate", "model.task")
def _metric(e: Experiment, facts: Facts) -> Iterator[Finding]:
    if facts.task is None:
        return
    valid = ["eval_loss", "train_loss", *(f"eval_{name}" for name in facts.task.metrics)]
    valid += ["eval_exact_match"] if e.evaluation.generate is not None else []
    metric = e.evaluation.metric
    if metric not in valid:
        hint = f"Write eval_{metric}" if f"eval_{metric}" in valid else nearest(metric, valid)
        yield Finding("evaluation.metric", f"{e.model.task} does not measure {metric!r}", hint)


@rule("evaluation.generate", "model.task")
def _generate(e: Experiment, facts: Facts) -> Iterator[Finding]:
    if facts.task is not None and not facts.task.uses_templates and e.evaluation.generate is not None:
        yield Finding(
            "evaluation.generate", f"{e.model.task} makes no prompts, so no answer is generated", "Take it out"
        )
