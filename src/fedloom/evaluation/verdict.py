"""What `fedloom eval` prints: a vector judged on the held-out rows and on every client's own, or on another source."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedloom.data.sources import open_source
from fedloom.evaluation.answers import written
from fedloom.evaluation.evaluator import Evaluator, Model
from fedloom.evaluation.judge import measure
from fedloom.local.prepare import Prepared, encode_source
from fedloom.local.store import ClientStore

__all__ = ["verdict"]


def verdict(prepared: Prepared, store: ClientStore, model: Model, source: str | None = None) -> list[dict[str, Any]]:
    """One record for each set of rows: `{"on": ..., "rows": ..., metrics}`.

    Raises DataError when another source holds a label that the training set does not.
    """
    if source is not None:
        experiment = prepared.experiment
        data = experiment.data.model_copy(update={"source": source, "where": {}, "limit": None})
        table = encode_source(experiment, prepared.task, prepared.tokenizer, open_source(data, experiment.base))
        rows = np.arange(len(table))
        batch = experiment.evaluation.batch_size
        metrics = prepared.task.metrics(measure(prepared.binding, prepared.task, table, rows, model.w, batch))
        metrics |= written(prepared, table, rows, model.w)
        return [{"on": source, "rows": len(table)} | {f"eval_{k}": v for k, v in metrics.items()}]
    evaluator = Evaluator(prepared, store)
    shared = evaluator.held_out(model)
    judged: list[dict[str, Any]] = [{"on": "held out", "rows": len(prepared.held_out)} | shared] if shared else []
    for record in evaluator.clients(model):
        metrics = {k: v for k, v in record.items() if k.startswith("eval_")}
        which = record["evaluated"].replace("_", " ") + (", unseen" if "unseen" in record else "")
        judged.append({"on": f"{record['client']}, {which}", "rows": record["rows"]} | metrics)
    return judged
