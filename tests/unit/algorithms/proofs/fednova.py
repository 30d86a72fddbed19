"""FedNova: clients' steps are normalised before their mean."""

from dataclasses import replace

import numpy as np
import torch
import toy

SPEC = {"name": "fednova"}


def TOY(spec, **sections):
    """Clients with 4, 8, 12 and 24 rows, so with 1, 2, 3 and 6 steps an epoch."""
    local = {"epochs": 1, "batch_size": 4} | sections.pop("local", {})
    made = toy.factors(spec, local=local, **sections)
    ragged = replace(made.train, offsets=np.array([0, 4, 12, 24, 48]))
    return replace(made, train=ragged, validation=ragged)


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, lr 0.1, 1 and 3 steps, weights 1/4 and 3/4.

    Without momentum: w_0 = 0.1, w_1 = 3 (1 - 0.9^3) = 0.813; a = 1 and 3.
      tau_eff = 0.25 + 0.75 * 3 = 2.5; w = 2.5 (0.25 * 0.1 + 0.75 * 0.813 / 3) = 2.5 * 0.22825 = 0.570625.
    With momentum 0.5: w_0 = 0.1; w_1: 0 -> 0.3 -> 0.3 + 0.1 (1.5 + 2.7) = 0.72 -> 0.72 + 0.1 (2.1 + 2.28) = 1.158.
      a_1 = (0.5 + 0.75 + 0.875) / 0.5 = 4.25; tau_eff = 0.25 + 0.75 * 4.25 = 3.4375;
      w = 3.4375 (0.025 + 0.75 * 1.158 / 4.25) = 0.78840074.
    """
    for momentum, w in ((0.0, 0.570625), (0.5, 0.78840074)):
        local = {"epochs": 1, "batch_size": 1, "momentum": momentum}
        made = toy.quadratic([[1.0], [3.0]], SPEC, rows=[1, 3], local=local)
        torch.testing.assert_close(toy.vectors(made, folder, 1), torch.tensor([w]))


def identity(folder):
    """When all clients take as many steps it is FedAvg, with momentum too."""
    for momentum in (0.0, 0.9):
        local = {"steps": 4, "momentum": momentum, "lr": 0.02}
        a, b = (toy.vectors(toy.factors(s, local=local), folder, 3) for s in (SPEC, "fedavg"))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """Where it ends is hardly drawn to who takes more steps: f_k = 1/2 (w - c_k)^2, c = 0 and 1, 1 and 9 steps, equal weights.

    With lr 0.1, w_k - w = b_k (c_k - w), b = 0.1 and 1 - 0.9^9 = 0.6125795. FedAvg ends at 0.6125795 / 0.7125795 = 0.859665;
    FedNova at (0.6125795 / 9) / (0.1 + 0.6125795 / 9) = 0.404990, which goes to the minimum of the mean loss, 0.5, with lr.
    """
    ends = {"fedavg": 0.859665, "fednova": 0.404990}
    for spec, end in ends.items():
        local = {"epochs": 1, "batch_size": 1, "lr": 0.1}
        made = toy.quadratic(
            [[0.0], [1.0]], spec, rows=[1, 9], local=local, federation={"weighting": {"kind": "uniform"}}
        )
        torch.testing.assert_close(toy.vectors(made, folder, 30), torch.tensor([end]), rtol=0, atol=1e-5)
