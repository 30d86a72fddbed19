"""FedProx: local steps are held back towards the server's vector."""

import torch
import toy

SPEC = {"name": "fedprox", "mu": 1.0}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 2 and 4, from 1, lr 0.1, mu 0.5, two steps.

    w_0: 1 -> 1 - 0.1 * (-1 + 0) = 1.1 -> 1.1 - 0.1 * (-0.9 + 0.5 * 0.1) = 1.185
    w_1: 1 -> 1 - 0.1 * (-3 + 0) = 1.3 -> 1.3 - 0.1 * (-2.7 + 0.5 * 0.3) = 1.555;  w = (1.185 + 1.555) / 2 = 1.37.
    """
    made = toy.quadratic([[2.0], [4.0]], {"name": "fedprox", "mu": 0.5}, start=[1.0], local={"steps": 2})
    torch.testing.assert_close(toy.vectors(made, folder, 1), torch.tensor([1.37]))


def identity(folder):
    """With mu 0 it is FedAvg."""
    spec = {"name": "fedprox", "mu": 0.0}
    a, b = (toy.vectors(toy.factors(s, local={"steps": 3}), folder, 3) for s in (spec, "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """The larger mu, the shorter the way ||w_k - w||; many steps end at the proximal point (h_k c_k + mu w) / (h_k + mu)."""
    drift = []
    for mu in (0.0, 0.1, 1.0, 5.0):
        made = toy.quadratic(
            [[5.0, -2.0]], {"name": "fedprox", "mu": mu}, start=[1.0, 1.0], curvature=[0.5], local={"steps": 20}
        )
        drift.append(float((toy.vectors(made, folder, 1) - made.initial).norm()))
    assert drift == sorted(drift, reverse=True) and drift[-1] < 0.2 * drift[0], drift
    made = toy.quadratic([[5.0]], {"name": "fedprox", "mu": 2.0}, start=[1.0], curvature=[3.0], local={"steps": 200})
    torch.testing.assert_close(toy.vectors(made, folder, 1), torch.tensor([(3 * 5 + 2 * 1) / (3 + 2)]))
