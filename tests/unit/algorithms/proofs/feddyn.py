"""FedDyn: a linear term draws the clients' minima together."""

import torch
import toy

from fedloom.selection.pool import uniform

SPEC = {"name": "feddyn", "alpha": 0.1}


def terms(federation, rounds):
    """The clients' h_k, `[N, n]`; zero for one that was never selected."""
    own = [federation.store.load(name, rounds + 1) for name in federation.prepared.train.clients]
    zero = torch.zeros_like(federation.progress.w)
    return torch.stack([zero if state is None else state["feddyn.h"] for state in own])


def hand(folder):
    """f_0 = 1/2 (w - 1)^2, f_1 = 2/2 (w - 4)^2, from 0, lr 0.1, two steps, alpha 0.5, both (1 and 3 rows: they count alike).

    Round 1.  w_0: 0 -> 0.1 -> 0.1 - 0.1 (-0.9 + 0.05) = 0.185;  w_1: 0 -> 0.8 -> 0.8 - 0.1 (-6.4 + 0.4) = 1.4.
      h_0 = -0.0925, h_1 = -0.7, h = -0.5 * 0.7925 = -0.39625, w = 0.7925 + 0.39625 / 0.5 = 1.585.
    Round 2, directions (w - 1) + 0.0925 + 0.5 (w - 1.585) and 2 (w - 4) + 0.7 + 0.5 (w - 1.585).
      w_0: 1.585 -> 1.585 - 0.06775 = 1.51725 -> 1.51725 - 0.1 * 0.575875 = 1.4596625, h_0 = -0.0925 + 0.06266875 = -0.02983125
      w_1: 1.585 -> 1.585 + 0.413 = 1.998 -> 1.998 + 0.1 * 3.0975 = 2.30775, h_1 = -0.7 - 0.361375 = -1.061375
      mean way 0.29870625, h = -0.39625 - 0.149353125 = -0.545603125, w = 1.585 + 0.29870625 + 1.09120625 = 2.9749125.
    One of two clients, round 1: h = -0.5 / 2 way, so w = 1.5 way: 0.2775 or 2.1.
    """
    spec, shape = {"name": "feddyn", "alpha": 0.5}, {"curvature": [1.0, 2.0], "local": {"steps": 2}}
    made = toy.federate(toy.quadratic([[1.0], [4.0]], spec, rows=[1, 3], **shape), folder, 2)
    torch.testing.assert_close(made.progress.w, torch.tensor([2.9749125]))
    torch.testing.assert_close(made.progress.server["feddyn.h"], torch.tensor([-0.545603125]))
    torch.testing.assert_close(terms(made, 2), torch.tensor([[-0.02983125], [-1.061375]]))
    alone = toy.quadratic([[1.0], [4.0]], spec, federation={"clients_per_round": 1}, **shape)
    w = {0: 0.2775, 1: 2.1}[int(uniform(2, 1, seed=0, round=1)[0])]
    torch.testing.assert_close(toy.vectors(alone, folder, 1), torch.tensor([w]))


def identity(folder):
    """Its first step is 1 + |S|/N times FedProx's with mu = alpha, and so, as alpha goes to 0, that many times FedAvg's.

    After that, as alpha goes to 0, every earlier mean step is taken again. f = 1/2 (w - 2)^2 from 0 with lr 0.5, N = |S|: the mean
    way is 1, 0, -0.5, -0.5 and its sum 1, 1, 0.5, 0, so w is 2, 3, 3, 2.5.
    """
    for alpha, spec in ((0.5, {"name": "fedprox", "mu": 0.5}), (1e-9, "fedavg")):
        for cohort in (1, 2, 4):
            sections = {"local": {"steps": 3}, "federation": {"clients_per_round": cohort}}
            own, other = toy.factors({"name": "feddyn", "alpha": alpha}, **sections), toy.factors(spec, **sections)
            step = toy.vectors(own, folder, 1) - own.initial
            plain = toy.vectors(other, folder, 1) - other.initial
            torch.testing.assert_close(step, (1 + cohort / 4) * plain, rtol=0, atol=2e-7)
    made = toy.quadratic([[2.0]], {"name": "feddyn", "alpha": 1e-9}, local={"lr": 0.5})
    made = toy.federate(made, folder, 0)
    for number, w in enumerate((2.0, 3.0, 3.0, 2.5), 1):
        made.round(number)
        torch.testing.assert_close(made.progress.w, torch.tensor([w]), rtol=0, atol=1e-6)


def property(folder):
    """It ends at the minimum of the mean loss, sum_k h_k c_k / sum_k h_k = 0.8, where FedAvg ends at 0.597886 (see FedAvg's proof).

    With a part of the clients, h stays the mean of all h_k.
    """
    toys = {"curvature": [1.0, 4.0], "local": {"lr": 0.2, "steps": 5}}
    drifted = toy.vectors(toy.quadratic([[0.0], [1.0]], "fedavg", **toys), folder, 12)
    torch.testing.assert_close(drifted, torch.tensor([0.597886]))
    made = toy.quadratic([[0.0], [1.0]], {"name": "feddyn", "alpha": 1.0}, **toys)
    torch.testing.assert_close(toy.vectors(made, folder, 40), torch.tensor([0.8]), rtol=0, atol=1e-4)
    made = toy.factors(SPEC, local={"steps": 3}, federation={"clients_per_round": 2})
    made = toy.federate(made, folder, 4)
    torch.testing.assert_close(made.progress.server["feddyn.h"], terms(made, 4).mean(0), rtol=0, atol=1e-6)
