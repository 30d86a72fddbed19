"""All data pooled in one place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import toy

from fedloom import algorithms
from fedloom.data.partition import Partition

SPEC = {"name": "central"}


def TOY(spec, **sections):
    made = toy.factors(spec, **({"local": {"steps": 3}} | sections))
    return made.with_algorithm(made.algorithm)


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3 on 1 and 3 rows: 1/2 (w - 2.5)^2 and a constant; lr 0.1, one step of two clients.

    So two steps are taken: 0 -> 0.25 -> 0.25 + 0.1 * 2.25 = 0.475. No bytes.
    """
    made = toy.quadratic([[1.0], [3.0]], SPEC, rows=[1, 3])
    made = toy.federate(made.with_algorithm(made.algorithm), folder, 1)
    torch.testing.assert_close(made.progress.w, torch.tensor([0.475]))
    assert made.progress.totals["bytes_up"] == made.progress.totals["bytes_down"] == 0


def identity(folder):
    """It is FedAvg with one client that holds all rows, and takes the steps of all four."""
    made = toy.factors("fedavg", local={"steps": 2})
    pooled = made.with_algorithm(algorithms.build(SPEC, Path.cwd()))
    rows = Partition(["all"], np.array([0, len(made.table)]), np.arange(len(made.table)))
    one = replace(made, train=rows, validation=rows)
    a, b = toy.vectors(pooled, folder, 3), toy.vectors(one, folder, 3, local={"steps": 8})
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
