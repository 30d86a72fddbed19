"""When a model is judged, on whose rows, with whose vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fedloom.evaluation.answers import written
from fedloom.evaluation.judge import measure, metrics_by_part
from fedloom.local.opening import open_group
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore
from fedloom.local.train import make_trainer

__all__ = ["Evaluator", "Judge", "Model"]

_HIGHER_IS_BETTER = ("accuracy", "f1", "auc", "exact_match", "ndcg", "hit_rate", "mcc")


class Model(Protocol):
    """What is judged: the server's vector `[n]` and state after a round."""

    w: Tensor
    server: dict[str, Tensor]
    round: int


class Judge(Protocol):
    """Who judges the model: this process, or the clients themselves."""

    def held_out(self, model: Model) -> dict[str, float]:
        """The metrics on rows that all share, `eval_` before each name."""

    def unseen(self, model: Model) -> dict[str, float]:
        """The mean over clients that never train, `eval_unseen_` before each name."""

    def clients(self, model: Model) -> list[dict[str, Any]]:
        """A record a client."""


class Evaluator:
    """Judges a federation's model: on the held-out rows that all share, and on each client's own."""

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        self._prepared, self._store = prepared, store
        self._trainer = make_trainer(prepared, grouped=False)
        self._latest: tuple[int, list[dict[str, Any]]] = (-1, [])  # judging every client is not done twice

    @staticmethod
    def lower_is_better(metric: str) -> bool:
        """Whether a metric is a loss or the like; accuracies, F1, AUC and their kind are better high."""
        return not metric.endswith(_HIGHER_IS_BETTER)

    def held_out(self, model: Model) -> dict[str, float]:
        """The metrics on the held-out rows, `eval_` before each name.

        When each client has its own vector: the mean over the clients that train.
        """
        if not len(self._prepared.held_out):
            return {}
        if not self._personal(model):
            metrics = self._on_held_out(model.w)
            return {f"eval_{name}": value for name, value in metrics.items()}
        return _means([r for r in self.clients(model) if r["evaluated"] == "held_out" and "unseen" not in r], "eval_")

    def unseen(self, model: Model) -> dict[str, float]:
        """The mean over the clients that never train of their metrics on their own rows, `eval_unseen_` before each name."""
        if not len(self._prepared.unseen):
            return {}
        return _means([r for r in self.clients(model) if r["evaluated"] == "own" and "unseen" in r], "eval_unseen_")

    def clients(self, model: Model) -> list[dict[str, Any]]:
        """A record a client: its metrics on its own validation rows, and with its own vector on the held-out rows too.

        Records of clients that never train say `"unseen": true`.
        """
        if self._latest[0] != model.round:
            judged = self._each_with_its_own(model) if self._personal(model) else self._all_with_the_servers(model)
            unseen = {self._prepared.train.clients[k] for k in self._prepared.unseen}
            self._latest = (model.round, [r | {"unseen": True} if r["client"] in unseen else r for r in judged])
        return self._latest[1]

    def own(self, model: Model, client: int) -> Tensor:
        """`[n]`: the vector with which a client is judged, by its number.

        Raises ClientError when a method that trains for it diverges.
        """
        prepared = self._prepared
        if not self._personal(model):
            return model.w
        beside = prepared.algorithm.broadcast(model.w, model.server)
        group, _ = open_group(
            prepared, self._store, self._trainer, [client], model.w, beside, round=model.round, before=model.round + 1
        )
        judged = prepared.algorithm.judged(group)[0].cpu()
        if failure := group.members[0].failure:
            raise failure
        return judged

    def _all_with_the_servers(self, model: Model) -> list[dict[str, Any]]:
        """Every client's validation rows in one pass."""
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
        prepared = self._prepared
        records: list[dict[str, Any]] = []
        for k, name in enumerate(prepared.train.clients):
            own = self.own(model, k)
            for which, rows in (("own", prepared.validation.rows(k)), ("held_out", prepared.held_out)):
                if len(rows):
                    shared = which == "held_out"
                    metrics = self._on_held_out(own) if shared else prepared.task.metrics(self._rows(own, rows))
                    records.append(_record(model.round, name, which, len(rows), metrics))
        return records

    def _on_held_out(self, w: Tensor) -> dict[str, float]:
        p = self._prepared
        return p.task.metrics(self._rows(w, p.held_out)) | written(p, p.table, p.held_out, w)

    def _rows(self, w: Tensor, rows: Any) -> Any:
        p = self._prepared
        return measure(p.binding, p.task, p.table, rows, w, p.experiment.evaluation.batch_size)


def _record(round: int, client: str, which: str, rows: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {"round": round, "client": client, "evaluated": which, "rows": rows} | {
        f"eval_{k}": v for k, v in metrics.items()
    }


def _means(records: Sequence[dict[str, Any]], prefix: str) -> dict[str, float]:
    """The mean of each metric over records, under another prefix."""
    names = [key for key in records[0] if key.startswith("eval_")] if records else []
    return {prefix + name.removeprefix("eval_"): float(np.mean([r[name] for r in records])) for name in names}
