"""FedAvgM: momentum at the server."""

import torch
import toy

SPEC = {"name": "fedavgm"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, local lr 0.5, so Delta = (2 - w) / 2; beta 0.9, lr 0.5.

    Round 1: v = 1, w = 0.5.  Round 2: Delta = 0.75, v = 0.9 + 0.75 = 1.65, w = 0.5 + 0.825 = 1.325.
    Round 3: Delta = 0.3375, v = 1.485 + 0.3375 = 1.8225, w = 1.325 + 0.91125 = 2.23625.
    """
    spec = {"name": "fedavgm", "beta": 0.9, "lr": 0.5}
    made = toy.federate(toy.quadratic([[1.0], [3.0]], spec, local={"lr": 0.5}), folder, 3)
    torch.testing.assert_close(made.progress.w, torch.tensor([2.23625]))
    torch.testing.assert_close(made.progress.server["fedavgm.v"], torch.tensor([1.8225]))


def identity(folder):
    """Without momentum it is FedAvg."""
    a, b = (
        toy.vectors(toy.factors(spec, local={"steps": 3}), folder, 3)
        for spec in ({"name": "fedavgm", "beta": 0.0}, "fedavg")
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """Along a straight way, velocity grows to 1 / (1 - beta) of an update: with Delta = 0.001 always, v -> 0.01."""
    made = toy.quadratic([[1e6]], SPEC, local={"lr": 1e-9})
    v = toy.federate(made, folder, 25).progress.server["fedavgm.v"]
    torch.testing.assert_close(v, torch.tensor([0.01 * (1 - 0.9**25)]), rtol=1e-4, atol=0)
