"""Everything a process that trains must hold: model, data, who has which rows. Loaded once, used for every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedloom import tasks
from fedloom.config.schema import ColumnPartition, DirichletPartition, Experiment
from fedloom.data.partition import Partition, hold_out, partition_rows, split_validation
from fedloom.data.sources import Source, open_source
from fedloom.data.table import Table, build_table
from fedloom.errors import DataError, FedloomError
from fedloom.models.adapters import attach
from fedloom.models.binding import Binding
from fedloom.models.load import fingerprint, load_model, load_tokenizer
from fedloom.tasks.base import Rows, Task

if TYPE_CHECKING:
    from fedloom.algorithms import Algorithm

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """An experiment made ready: nothing here changes from round to round but the values in the binding."""

    experiment: Experiment
    algorithm: Algorithm
    task: Task
    tokenizer: Any
    labels: list[str]
    table: Table
    held_out: Rows
    train: Partition
    validation: Partition
    binding: Binding
    base: str
    """Fingerprint of the frozen weights."""
    initial: Tensor
    """The trainable vector before any training, `[n]`."""
    step_scale: int = 1

    def with_algorithm(self, algorithm: Algorithm) -> Prepared:
        """The same experiment under another algorithm; for a pooled one, all clients become one that takes a cohort's steps."""
        if not algorithm.pooled:
            return replace(self, algorithm=algorithm)
        cohort = self.experiment.federation.clients_per_round or len(self.train)
        return replace(
            self, algorithm=algorithm, train=_pool(self.train), validation=_pool(self.validation), step_scale=min(cohort, len(self.train))
        )


def _pool(partition: Partition) -> Partition:
    return Partition(["all"], np.array([0, len(partition.indices)]), np.sort(partition.indices))
