"""DiLoCo: outer Nesterov momentum."""

import torch
import toy

SPEC = {"name": "diloco"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, local lr 0.5, so delta = (w - 2) / 2; outer lr 0.7, mu 0.9.

    Round 1: delta = -1, b = -1, w = 0.7 * (1 + 0.9) = 1.33.
    Round 2: delta = -0.335, b = -0.9 - 0.335 = -1.235, w = 1.33 + 0.7 * (0.335 + 0.9 * 1.235) = 2.34255.
    """
    made = toy.quadratic([[1.0], [3.0]], SPEC, local={"lr": 0.5})
    torch.testing.assert_close(toy.vectors(made, folder, 2), torch.tensor([2.34255]))


def identity(folder):
    """With lr 1 and no momentum it is FedAvg."""
    spec = {"name": "diloco", "lr": 1.0, "mu": 0.0}
    a, b = (toy.vectors(toy.factors(s, local={"steps": 3}), folder, 3) for s in (spec, "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """The outer step is torch.optim.SGD's with Nesterov momentum, on the gradient w - mean_k w_k."""
    made = toy.federate(toy.factors(SPEC, local={"steps": 3}), folder, 0)
    w = torch.nn.Parameter(made.progress.w.clone())
    outer = torch.optim.SGD([w], lr=0.7, momentum=0.9, nesterov=True)
    server = made.progress.server
    for seed in range(4):
        delta = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed))
        step, server = made.algorithm.apply(w.detach(), {"delta": delta}, server, None)
        expected = w.detach() + step
        w.grad = -delta
        outer.step()
        torch.testing.assert_close(expected, w.detach(), rtol=0, atol=1e-6)
