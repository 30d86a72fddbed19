"""When a model is judged, on whose rows, with whose vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fedloom.evaluation.judge import measure, metrics_by_part
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["Evaluator"]

_HIGHER_IS_BETTER = ("accuracy", "f1", "auc", "exact_match", "ndcg", "hit_rate", "mcc")


class Evaluator:
    """Judges a federation's model: on the held-out rows that all share, and on each client's own."""

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        self._prepared, self._store = prepared, store

    @staticmethod
    def lower_is_better(metric: str) -> bool:
        """Whether a metric is a loss or the like; accuracies, F1, AUC and their kind are better high."""
        return not metric.endswith(_HIGHER_IS_BETTER)

    def held_out(self, w: Tensor, round: int) -> dict[str, float]:
        """The metrics on the held-out rows, `eval_` before each name; the mean over clients when each has its own vector."""
        if not len(self._prepared.held_out):
            return {}
        if self._prepared.algorithm.personal and round > 0:
            each = [self._measure(own, self._prepared.held_out) for own in self._own_vectors(w, round)]
            return {name: float(np.mean([m[name] for m in each])) for name in each[0]}
        return self._measure(w, self._prepared.held_out)

    def clients(self, w: Tensor, round: int) -> list[dict[str, Any]]:
        """A record a client: its metrics on its own validation rows, and with its own vector on the held-out rows too."""
        prepared, validation = self._prepared, self._prepared.validation
        names, sizes = validation.clients, np.diff(validation.offsets)
        records: list[dict[str, Any]] = []
        if not (prepared.algorithm.personal and round > 0):
            if not len(validation.indices):
                return []
            keep = [k for k, size in enumerate(sizes) if size]
            measured = self._rows(w, validation.indices)
            parts = metrics_by_part(prepared.task, measured, [int(sizes[k]) for k in keep])
            return [_record(round, names[k], "own", int(sizes[k]), m) for k, m in zip(keep, parts, strict=True)]
        for k, own in enumerate(self._own_vectors(w, round)):
            for which, rows in (("own", validation.rows(k)), ("held_out", prepared.held_out)):
                if len(rows):
                    metrics = prepared.task.metrics(self._rows(own, rows))
                    records.append(_record(round, names[k], which, len(rows), metrics))
        return records

    def _own_vectors(self, w: Tensor, round: int) -> list[Tensor]:
        states = [self._store.load(name, round + 1) for name in self._prepared.train.clients]
        return [w if state is None else state["own"] for state in states]

    def _measure(self, w: Tensor, rows: Any) -> dict[str, float]:
        metrics = self._prepared.task.metrics(self._rows(w, rows))
        return {f"eval_{name}": value for name, value in metrics.items()}

    def _rows(self, w: Tensor, rows: Any) -> Any:
        p = self._prepared
        return measure(p.binding, p.task, p.table, rows, w, p.experiment.evaluation.batch_size)


def _record(round: int, client: str, which: str, rows: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"round": round, "client": client, "evaluated": which, "rows": rows} | {
        f"eval_{k}": v for k, v in metrics.items()
    }
