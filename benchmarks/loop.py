"""The loop itself: a round whose clients train nothing, against the same weighted sum in a plain NumPy loop.

Everything else of a round happens: selection, groups, starting points, differences, bytes counted, the fold in
float64, the server's step, the records of the round and of every client. What the clients "learnt" was made beforehand. The
NumPy loop is given the same rows and does total += weight * (row - start), in float64, without temporary arrays; a second ratio is
against one that is given the differences and only adds them up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Setting, cpu_seconds, machine, make_federation, make_prepared, one_round, ratio, rotate
from numpy.typing import NDArray
from torch import Tensor, nn

from fedloom.data.partition import Partition
from fedloom.federation import Federation
from fedloom.local.group import Group, Member
from fedloom.local.train import Trainer

TOLERANCE = 1e-6
Array = NDArray[np.float32]


class Vector(nn.Module):
    """A model that is a vector of numbers and computes nothing."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(length, generator=torch.Generator().manual_seed(1)))


class Untrained(Trainer):
    """Hands out rows made beforehand where training would be."""

    rows: Tensor

    def member(self, partition: Partition, client: int, round: int, scale: int = 1, stretch: int = 1) -> Member:
        """A member with one step of nothing: planning batches is part of training."""
        return Member(partition.clients[client], [[]])

    def train(self, group: Group, *_: Any, **__: Any) -> Tensor:
        """Each member of a group gets its own of the rows."""
        for member in group.members:
            member.loss, member.tokens, member.samples = 1.0, 1, 1
        return self.rows[: len(group)]


def without_training(federation: Federation) -> Array:
    """Replace the federation's trainer; returns the rows that the members of a group will end at."""
    prepared, sizing = federation.prepared, federation.engine.sizing
    local, seed = prepared.experiment.local, prepared.experiment.seed
    trainer = Untrained(prepared.binding, prepared.task, prepared.table, local, seed, sizing.grouped)
    shape = (sizing.group_size, prepared.binding.layout.n)
    trainer.rows = prepared.initial + 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    federation.engine._worker._trainer = trainer
    return trainer.rows.numpy()


def numpy_round(start: Array, rows: Array, weights: list[float], subtract: bool = True) -> Array:
    """start + the weighted mean of row - start, client k's being row k modulo the group size."""
    total, product, difference, weight = np.zeros(len(start)), np.empty(len(start)), np.empty_like(start), 0.0
    for k, own in enumerate(weights):
        row = rows[k % len(rows)]
        if subtract:
            row = np.subtract(row, start, out=difference)
        np.multiply(row, own, out=product)
        total += product
        weight += own
    return start + (total / weight).astype(np.float32)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--length", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--smallest", action="store_true", help="20 clients and 1,000 numbers: a check, not a measurement"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    clients, length = (20, 1000) if options.smallest else (options.clients, options.length)
    print(machine())
    setting = Setting(clients, 1, 8)
    tokens = torch.ones(clients, 2, setting.tokens, dtype=torch.long)
    with tempfile.TemporaryDirectory() as folder:
        federation = make_federation(make_prepared(setting, tokens, Vector(length)), Path(folder))
        start, rows = federation.prepared.initial.numpy(), without_training(federation)
        weights = federation.prepared.train.sizes.astype(float).tolist()
        difference = np.abs(one_round(federation).numpy() - numpy_round(start, rows, weights)).max()
        if not difference <= TOLERANCE:
            raise SystemExit(f"the results differ by {difference}")
        methods = {
            "fedloom": lambda: cpu_seconds(lambda: one_round(federation)),
            "numpy": lambda: cpu_seconds(lambda: numpy_round(start, rows, weights)),
            "sums": lambda: cpu_seconds(lambda: numpy_round(start, rows, weights, subtract=False)),
        }
        seconds = rotate(methods, options.repetitions)
        federation.run_dir.close()
    each = {name: 1e6 * statistics.median(own) / clients for name, own in seconds.items()}
    print(f"{clients} clients, {length:,} numbers each, groups of {federation.engine.sizing.group_size}")
    print(f"  largest difference {difference:.1e}")
    print(f"  the whole loop / the same differences and sums in NumPy {ratio(seconds['fedloom'], seconds['numpy'])}")
    print(f"  the whole loop / the sums alone in NumPy {ratio(seconds['fedloom'], seconds['sums'])}")
    print(
        f"  microseconds a client: the loop {each['fedloom']:.0f}, NumPy {each['numpy']:.0f}, sums alone {each['sums']:.0f}"
    )


if __name__ == "__main__":
    main()
