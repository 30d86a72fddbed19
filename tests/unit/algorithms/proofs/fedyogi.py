"""FedYogi: as FedAdam, with a v that falls no faster than it rises."""

import torch
import toy

SPEC = {"name": "fedyogi"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, local lr 0.5, so Delta = (2 - w) / 2; lr 2, beta1 0.5, beta2 0.75, tau 0.5.

    Round 1: Delta = 1, m = 0.5, v = 0.25 - 0.25 * 1 * sign(0.25 - 1) = 0.5, w = 2 * 0.5 / (0.7071068 + 0.5) = 0.8284271.
    Round 2: Delta = 0.5857864, Delta^2 = 0.3431458 < v, m = 0.25 + 0.2928932 = 0.5428932,
             v = 0.5 - 0.25 * 0.3431458 = 0.4142136, w = 0.8284271 + 2 * 0.5428932 / (0.6435942 + 0.5) = 1.777877.
    """
    spec = {"name": "fedyogi", "lr": 2.0, "beta1": 0.5, "beta2": 0.75, "tau": 0.5}
    made = toy.federate(toy.quadratic([[1.0], [3.0]], spec, local={"lr": 0.5}), folder, 2)
    torch.testing.assert_close(made.progress.w, torch.tensor([1.777877]), rtol=0, atol=2e-6)
    torch.testing.assert_close(made.progress.server["fedyogi.v"], torch.tensor([0.4142136]))


def identity(folder):
    """With beta1 0, tau so large that v stays tau^2, and lr = 2 tau, it is FedAvg: 2 tau Delta / (tau + tau)."""
    spec = {"name": "fedyogi", "beta1": 0.0, "tau": 1024.0, "lr": 2048.0}
    a, b = (toy.vectors(toy.factors(s, local={"steps": 3}), folder, 3) for s in (spec, "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """v is never below zero, whatever the updates, and changes by (1 - beta2) Delta^2 at most."""
    made = toy.federate(toy.factors({"name": "fedyogi", "beta2": 0.5}), folder, 0)
    w, server = made.progress.w, made.progress.server
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        delta = torch.randn(w.shape, generator=g) * 10 ** (4 * torch.rand(w.shape, generator=g) - 3)
        before = server["fedyogi.v"]
        step, server = made.algorithm.apply(w, {"delta": delta}, server, None)
        v = server["fedyogi.v"]
        assert (v >= 0).all() and torch.isfinite(step).all()
        assert ((v - before).abs() <= 0.5 * delta.square() * (1 + 1e-5) + 1e-6 * before).all()
