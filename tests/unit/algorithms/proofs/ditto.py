"""Ditto: a vector of each client's own, drawn towards the server's."""

import torch
import toy

SPEC = {"name": "ditto", "strength": 0.5}


def own(federation):
    return torch.stack(
        [federation.evaluator.own(federation.progress, k) for k in range(len(federation.prepared.train))]
    )


def hand(folder):
    """f_k = 1/2 ||w - c_k||^2, c = (2, 0) and (0, 4), from 0, lr 0.1, lambda 0.5, one step a round.

    Round 1: v = w = 0, so v_0 = (0.2, 0), v_1 = (0, 0.4), and w = (0.1, 0.2).
    Round 2: v_0 = (0.2, 0) - 0.1 ((-1.8, 0) + 0.5 (0.1, -0.2)) = (0.375, 0.01);
             v_1 = (0, 0.4) - 0.1 ((0, -3.6) + 0.5 (-0.1, 0.2)) = (0.005, 0.75);
             w_0 = (0.1, 0.2) - 0.1 (-1.9, 0.2) = (0.29, 0.18), w_1 = (0.1, 0.2) - 0.1 (0.1, -3.8) = (0.09, 0.58): w = (0.19, 0.38).
    """
    made = toy.federate(toy.quadratic([[2.0, 0.0], [0.0, 4.0]], SPEC), folder, 1)
    torch.testing.assert_close(own(made), torch.tensor([[0.2, 0.0], [0.0, 0.4]]))
    made.round(2)
    torch.testing.assert_close(own(made), torch.tensor([[0.375, 0.01], [0.005, 0.75]]))
    torch.testing.assert_close(made.progress.w, torch.tensor([0.19, 0.38]))


def identity(folder):
    """The server's vector is FedAvg's whatever lambda; with lambda 0 the clients' own are those of each alone."""
    sections = {"local": {"steps": 3}}
    for strength in (0.0, 2.0):
        mine = toy.federate(toy.factors({"name": "ditto", "strength": strength}, **sections), folder, 3)
        plain = toy.vectors(toy.factors("fedavg", **sections), folder, 3)
        torch.testing.assert_close(mine.progress.w, plain, rtol=0, atol=1e-7)
        alone = own(toy.federate(toy.factors("local", **sections), folder, 3))
        if strength == 0:
            torch.testing.assert_close(own(mine), alone, rtol=0, atol=1e-7)
        else:
            assert (own(mine) - alone).abs().max() > 1e-2
    longer = toy.federate(toy.factors({"name": "ditto", "strength": 0.0, "steps": 3}, local={"steps": 1}), folder, 3)
    torch.testing.assert_close(own(longer), alone, rtol=0, atol=1e-7)


def property(folder):
    """The larger lambda, the nearer the clients' own vectors to the server's."""
    apart = []
    for strength in (0.0, 0.5, 2.0):
        made = toy.federate(toy.factors({"name": "ditto", "strength": strength}, local={"steps": 3}), folder, 5)
        apart.append(float((own(made) - made.progress.w).norm()))
    assert apart[0] > apart[1] > apart[2] > 0
