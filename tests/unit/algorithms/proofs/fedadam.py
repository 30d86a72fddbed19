"""FedAdam: the server divides by the root of a running mean of squared updates."""

import torch
import toy

SPEC = {"name": "fedadam"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, local lr 0.5, so Delta = (2 - w) / 2; lr 0.1, beta1 0.9, beta2 0.75, tau 0.1.

    Round 1: m = 0.1, v = 0.75 * 0.01 + 0.25 = 0.2575, w = 0.1 * 0.1 / (0.5074446 + 0.1) = 0.0164624.
    Round 2: Delta = 0.9917688, m = 0.09 + 0.0991769 = 0.1891769, v = 0.193125 + 0.25 * 0.9836053 = 0.4390263,
             w = 0.0164624 + 0.1 * 0.1891769 / (0.6625906 + 0.1) = 0.0412696.
    """
    spec = {"name": "fedadam", "lr": 0.1, "beta1": 0.9, "beta2": 0.75, "tau": 0.1}
    made = toy.federate(toy.quadratic([[1.0], [3.0]], spec, local={"lr": 0.5}), folder, 2)
    torch.testing.assert_close(made.progress.w, torch.tensor([0.0412696]), rtol=0, atol=2e-7)
    torch.testing.assert_close(made.progress.server["fedadam.m"], torch.tensor([0.1891769]))
    torch.testing.assert_close(made.progress.server["fedadam.v"], torch.tensor([0.4390263]))


def identity(folder):
    """With beta1 0, beta2 so near 1 that v stays tau^2, and lr = 2 tau, it is FedAvg: 2 tau Delta / (tau + tau)."""
    spec = {"name": "fedadam", "beta1": 0.0, "beta2": 1 - 1e-12, "tau": 1024.0, "lr": 2048.0}
    a, b = (toy.vectors(toy.factors(s, local={"steps": 3}), folder, 3) for s in (spec, "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """Adaptive: where tau plays no part, updates a hundred times as large move the server by the same."""
    steps = []
    for scale in (1.0, 100.0):
        spec = {"name": "fedadam", "tau": 1e-9}
        made = toy.quadratic([[1.0 * scale, -3.0 * scale]], spec, local={"lr": 0.5})
        steps.append(toy.vectors(made, folder, 1))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-5, atol=0)
