"""When a federation's model is judged, which round was its best, and when there is nothing more to gain."""

from __future__ import annotations

from typing import Any

from fedloom.evaluation.evaluator import Evaluator, Judge
from fedloom.local.prepare import Prepared
from fedloom.tracking.checkpoint import Progress
from fedloom.tracking.rundir import RunDir

__all__ = ["Evaluations"]


class Evaluations:
    """Judges the model when it is due; what is remembered of it is in the progress."""

    def __init__(self, prepared: Prepared, judge: Judge, run_dir: RunDir) -> None:
        self._experiment, self._judge, self._run_dir = prepared.experiment, judge, run_dir
        # Of a yardstick each client has a vector of its own; to judge all of them every round costs too much.
        alone = prepared.algorithm.personal and not prepared.algorithm.federated
        settings = prepared.experiment.evaluation
        self._every = settings.clients_every if alone else settings.every

    def judge(self, progress: Progress) -> dict[str, Any]:
        """The metrics of the model after a round (0: before any training), where they are due; clients' go into their file."""
        settings, number, record = self._experiment.evaluation, progress.round, dict[str, Any]()
        final = number == self._experiment.federation.rounds
        if number == 0 or final or (self._every and number % self._every == 0):
            record |= self._judge.held_out(progress)
        if number > 0 and settings.metric in record:
            self._compare(progress, record[settings.metric])
        due = settings.clients_every and number % settings.clients_every == 0
        if number == 0 or due or self.over(progress):
            self._run_dir.clients(self._judge.clients(progress))
            record |= self._judge.unseen(progress)
        return record

    def over(self, progress: Progress) -> bool:
        """Whether all rounds are done, or the watched metric has stalled."""
        stopping = self._experiment.federation.early_stopping
        stalled = stopping is not None and progress.stale >= stopping.patience
        return stalled or progress.round >= self._experiment.federation.rounds

    def _compare(self, progress: Progress, value: float) -> None:
        """Compare the watched metric with the best so far."""
        stopping = self._experiment.federation.early_stopping
        sign = 1.0 if Evaluator.lower_is_better(self._experiment.evaluation.metric) else -1.0
        margin = stopping.min_delta if stopping else 0.0
        progress.stale += 1
        if progress.best_value is None or sign * value < sign * progress.best_value - margin:
            progress.best_round, progress.best_value, progress.stale = progress.round, value, 0
