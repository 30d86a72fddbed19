"""FedAdagrad: the server divides by the root of all squared updates."""

import torch
import toy

SPEC = {"name": "fedadagrad"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, local lr 0.5, so Delta = (2 - w) / 2; lr 0.1, tau 0.1, beta1 0.

    Round 1: v = 0.01 + 1 = 1.01, w = 0.1 * 1 / (1.0049876 + 0.1) = 0.0904988.
    Round 2: Delta = 0.9547506, v = 1.01 + 0.9115487 = 1.9215487, w = 0.0904988 + 0.1 * 0.9547506 / (1.3862 + 0.1) = 0.154740.
    """
    spec = {"name": "fedadagrad", "lr": 0.1, "tau": 0.1}
    made = toy.federate(toy.quadratic([[1.0], [3.0]], spec, local={"lr": 0.5}), folder, 2)
    torch.testing.assert_close(made.progress.w, torch.tensor([0.154740]), rtol=0, atol=2e-6)
    torch.testing.assert_close(made.progress.server["fedadagrad.v"], torch.tensor([1.9215487]))


def identity(folder):
    """With tau so large that v stays tau^2, and lr = 2 tau, it is FedAvg: 2 tau Delta / (tau + tau)."""
    spec = {"name": "fedadagrad", "tau": 1024.0, "lr": 2048.0}
    a, b = (toy.vectors(toy.factors(s, local={"steps": 3}), folder, 3) for s in (spec, "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """v never falls."""
    made = toy.federate(toy.factors(SPEC, local={"steps": 3}), folder, 1)
    before = made.progress.server["fedadagrad.v"]
    for number in range(2, 6):
        made.round(number)
        now = made.progress.server["fedadagrad.v"]
        assert (now >= before).all() and (now > before).any()
        before = now
