"""Measuring a vector on rows of the table: overall, and client by client from one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.data.table import Table
from fedloom.errors import ModelError
from fedloom.models.binding import Binding
from fedloom.tasks.base import Rows, Task

__all__ = ["Measured", "measure", "metrics_by_part"]

Measured = Mapping[str, NDArray[Any]]
"""Per measured row: its loss, its items, and what the task's metrics need."""


@torch.inference_mode()
def measure(binding: Binding, task: Task, table: Table, rows: Rows, w: Tensor, batch_size: int) -> Measured:
    """Measure the model with vector `w` on rows, in the order given; batches hold rows of like length.

    Raises ModelError when the model or the task fails on them.
    """
    binding.load(w)
    order = np.argsort(-table.lengths[rows], kind="stable")
    parts: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(rows), batch_size):
        try:
            batch = task.collate(table, [rows[order[start : start + batch_size]]]).to(binding.device)
            measured = task.measure(binding.model, batch)
        except Exception as error:  # the model may be anyone's
            what = f"the model cannot be judged: {type(error).__name__}: {error}"
            fix = "check that the model fits the task; where memory ran out, lower evaluation.batch_size"
            raise ModelError(what, where="model", fix=fix) from error
        for name, values in measured.items():
            parts.setdefault(name, []).append(values.cpu().numpy())
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def metrics_by_part(task: Task, measured: Measured, sizes: Sequence[int]) -> list[dict[str, float]]:
    """The metrics of consecutive parts of the measured rows, one part a client."""
    ends = np.cumsum(sizes)
    return [
        task.metrics({k: v[end - size : end] for k, v in measured.items()})
        for size, end in zip(sizes, ends, strict=True)
    ]
