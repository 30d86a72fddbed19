"""When a model is judged, on whose rows, with whose vector."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fedloom.evaluation.judge import measure, metrics_by_part
from fedloom.local.opening import open_group
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore
from fedloom.local.train import make_trainer

__all__ = ["Evaluator", "Model"]

_HIGHER_IS_BETTER = ("accuracy", "f1", "auc", "exact_match", "ndcg", "hit_rate", "mcc")


class Model(Protocol):
    """What is judged: the server's vector `[n]` and state after a round."""

    w: Tensor
    server: dict[str, Tensor]
    round: int


class Evaluator:
    """Judges a federation's model: on the held-out rows that all share, and on each client's own."""

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        self._prepared, self._store = prepared, store
        self._trainer = make_trainer(prepared, grouped=False)
        self._latest: tuple[int, list[dict[str, Any]]] = (-1, [])  # judging every client's own vector is not done twice

    @staticmethod
    def lower_is_better(metric: str) -> bool:
        """Whether a metric is a loss or the like; accuracies, F1, AUC and their kind are better high."""
        return not metric.endswith(_HIGHER_IS_BETTER)

    def held_out(self, model: Model) -> dict[str, float]:
        """The metrics on the held-out rows, `eval_` before each name; the mean over clients when each has its own vector."""
        if not len(self._prepared.held_out):
            return {}
        if not self._personal(model):
            metrics = self._prepared.task.metrics(self._rows(model.w, self._prepared.held_out))
            return {f"eval_{name}": value for name, value in metrics.items()}
        shared = [r for r in self.clients(model) if r["evaluated"] == "held_out"]
        names = [key for key in shared[0] if key.startswith("eval_")]
        return {name: float(np.mean([r[name] for r in shared])) for name in names}

    def clients(self, model: Model) -> list[dict[str, Any]]:
        """A record a client: its metrics on its own validation rows, and with its own vector on the held-out rows too."""
        if self._personal(model):
            if self._latest[0] != model.round:
                self._latest = (model.round, self._each_with_its_own(model))
            return self._latest[1]
        validation = self._prepared.validation
        sizes = np.diff(validation.offsets)
        keep = [k for k, size in enumerate(sizes) if size]
        if not keep:
            return []
        measured = self._rows(model.w, validation.indices)
        parts = metrics_by_part(self._prepared.task, measured, [int(sizes[k]) for k in keep])
        names = validation.clients
        return [_record(model.round, names[k], "own", int(sizes[k]), m) for k, m in zip(keep, parts, strict=True)]

    def _personal(self, model: Model) -> bool:
        return self._prepared.algorithm.personal and model.round > 0

    def _each_with_its_own(self, model: Model) -> list[dict[str, Any]]:
        """Every client's own vector, one in memory at a time."""
        prepared, records = self._prepared, []
        beside = prepared.algorithm.broadcast(model.w, model.server)
        for k, name in enumerate(prepared.train.clients):
            group, _ = open_group(
                prepared, self._store, self._trainer, [k], model.w, beside, round=model.round, before=model.round + 1
            )
            own = prepared.algorithm.judged(group)[0].cpu()
            for which, rows in (("own", prepared.validation.rows(k)), ("held_out", prepared.held_out)):
                if len(rows):
                    metrics = prepared.task.metrics(self._rows(own, rows))
                    records.append(_record(model.round, name, which, len(rows), metrics))
        return records

    def _rows(self, w: Tensor, rows: Any) -> Any:
        p = self._prepared
        return measure(p.binding, p.task, p.table, rows, w, p.experiment.evaluation.batch_size)


def _record(round: int, client: str, which: str, rows: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"round": round, "client": client, "evaluated": which, "rows": rows} | {
        f"eval_{k}": v for k, v in metrics.items()
    }
