"""The protocol of a task, and the joined batch that every task builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedloom.config.schema import Data
from fedloom.data.table import Table
from fedloom.tasks import TaskInfo

__all__ = ["Batch", "Rows", "Task", "join_ragged", "logits_of"]

Rows = NDArray[np.int64]
"""Row numbers of a table."""


@dataclass
class Batch:
    """K clients' examples as K equal, padded blocks of B rows: every tensor is `[K*B, ...]`.

    `items[k]` counts what client k's loss is averaged over (its own learnt tokens, or its rows); padding counts for nothing.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    items: list[int]
    rows: list[int]
    lengths: list[int]
    tokens: list[int]
    picks: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        self.inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        self.targets = self.targets.to(device)
        self.picks = self.picks.to(device) if self.picks is not None else None
        return self


class Task(Protocol):
    """What a batch is, the loss, the metrics. Built once per process as `Task(tokenizer, data, labels)`."""

    info: ClassVar[TaskInfo]
    auto_class: ClassVar[str]
    """The transformers class that loads the model."""
    peft_task: ClassVar[str | None]
    heads: ClassVar[tuple[str, ...]]
    """Modules this task learns whole, where the model has them."""

    def __init__(self, tokenizer: Any, data: Data, labels: Sequence[str]) -> None: ...

    def encoder(self) -> Callable[..., Any]:
        """What turns mapped rows into columns of the table."""
        ...

    def collate(self, table: Table, rows: Sequence[Rows]) -> Batch:
        """The joined batch of K clients, `rows[k]` naming client k's examples."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[K]`: each client's loss, **summed** over its items."""
        ...

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """For each row of the batch: `loss` (summed), `items`, and what the metrics need; all `[K*B]`."""
        ...

    def metrics(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """`loss` and every metric over a set of measured rows."""
        ...


def join_ragged(
    values: NDArray[Any], offsets: NDArray[np.int64], rows: Sequence[Rows], fill: int
) -> tuple[Tensor, Tensor, list[int]]:
    """K clients' variable-length rows as `[K*B, T]`, padded with `fill`; the lengths `[K*B]`; each client's own longest."""
    b = max(len(r) for r in rows)
    counts = np.zeros((len(rows), b), dtype=np.int64)
    for k, own in enumerate(rows):
        counts[k, : len(own)] = offsets[own + 1] - offsets[own]
    joined = np.full((len(rows), b, max(int(counts.max()), 1)), fill, dtype=np.int64)
    for k, own in enumerate(rows):
        for i, row in enumerate(own):
            joined[k, i, : counts[k, i]] = values[offsets[row] : offsets[row + 1]]
    longest = [max(int(c.max()), 1) for c in counts]
    return torch.from_numpy(joined.reshape(len(rows) * b, -1)), torch.from_numpy(counts.reshape(-1)), longest


def logits_of(output: Any) -> Tensor:
    """The logits of a transformers output, or of a model that returns them bare, in float32."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits.float()
