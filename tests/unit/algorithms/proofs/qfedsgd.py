"""q-FedSGD: one gradient over all rows a round; clients whose loss is high count more."""

import torch
import toy

SPEC = {"name": "qfedsgd"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0 (on 1 and 3 rows: they count alike); F = 0.5 and 4.5, gradients -1 and -3.

    q = 1, L = 1/lr = 2: Delta = -0.5 and -13.5; h = 1 + 1 and 9 + 9; w = 14 / 20 = 0.7.
    q = 2, L = 4: Delta = -0.25 and -60.75; h = 2 * 0.5 * 1 + 4 * 0.25 = 2 and 2 * 4.5 * 9 + 4 * 20.25 = 162; w = 61 / 164.
    """
    for options, w in (({"q": 1.0}, 0.7), ({"q": 2.0, "lipschitz": 4.0}, 61 / 164)):
        spec = {"name": "qfedsgd", **options}
        made = toy.quadratic([[1.0], [3.0]], spec, rows=[1, 3], local={"lr": 0.5, "batch_size": 1})
        torch.testing.assert_close(toy.vectors(made, folder, 1), torch.tensor([w]))


def identity(folder):
    """With q 0 it is FedSGD with clients that count alike; and so FedAvg with one step on all rows."""
    spec = {"name": "qfedsgd", "q": 0.0}
    a, b, c = (toy.vectors(toy.factors(s), folder, 3) for s in (spec, "fedsgd", "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    torch.testing.assert_close(a, c, rtol=0, atol=1e-7)


def property(folder):
    """The larger q, the more alike the clients' losses in the end."""
    spread = []
    for q in (0.0, 1.0, 3.0):
        made = toy.quadratic([[0.0], [0.0], [3.0]], {"name": "qfedsgd", "q": q}, start=[0.5], local={"lr": 1.0})
        w = toy.vectors(made, folder, 15)
        spread.append(float(torch.stack([w**2 / 2, w**2 / 2, (3 - w) ** 2 / 2]).var()))
    assert spread == sorted(spread, reverse=True) and spread[-1] < 0.5 * spread[0]
