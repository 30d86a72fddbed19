"""q-FedAvg: clients whose loss is high count more."""

import torch
import toy

SPEC = {"name": "qfedavg"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, lr 0.5, two steps (on 1 and 3 rows: they count alike); F = 0.5 and 4.5.

    w_0 = 0.75, w_1 = 2.25.
    q = 1, L = 1/lr = 2: L (w - w_k) = -1.5 and -4.5; Delta = -0.75 and -20.25; h = 2.25 + 1 and 20.25 + 9;
      w = 21 / 32.5 = 0.6461538.
    q = 2, L = 4: L (w - w_k) = -3 and -9; Delta = -0.75 and -182.25;
      h = 2 * 0.5 * 9 + 4 * 0.25 = 10 and 2 * 4.5 * 81 + 4 * 20.25 = 810; w = 183 / 820 = 0.2231707.
    """
    for options, w in (({"q": 1.0}, 21 / 32.5), ({"q": 2.0, "lipschitz": 4.0}, 183 / 820)):
        spec = {"name": "qfedavg", **options}
        made = toy.quadratic([[1.0], [3.0]], spec, rows=[1, 3], local={"lr": 0.5, "steps": 2})
        torch.testing.assert_close(toy.vectors(made, folder, 1), torch.tensor([w]))


def identity(folder):
    """With q 0 it is FedAvg with clients that count alike, whatever L."""
    for lipschitz in (None, 3.0):
        spec = {"name": "qfedavg", "q": 0.0, "lipschitz": lipschitz}
        a, b = (toy.vectors(toy.factors(s, local={"steps": 3}), folder, 3) for s in (spec, "fedavg"))
        if lipschitz is None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=5e-7)


def property(folder):
    """The larger q, the better the worst client fares: f_k = 1/2 (w - c_k)^2, c = 0, 0 and 3, one step a round.

    sum_k F_k^(q + 1) is least where 2 w^(2q + 1) = (3 - w)^(2q + 1), at w = 3 / (1 + 2^(1 / (2q + 1))): 1, 1.3274, 1.3963.
    """
    worst = []
    for q in (0.0, 1.0, 2.0):
        made = toy.quadratic([[0.0], [0.0], [3.0]], {"name": "qfedavg", "q": q}, start=[0.5], local={"lr": 1.0})
        w = toy.vectors(made, folder, 25).item()
        assert abs(w - 3 / (1 + 2 ** (1 / (2 * q + 1)))) < 1e-4
        worst.append((3 - w) ** 2 / 2)
    assert worst == sorted(worst, reverse=True)
