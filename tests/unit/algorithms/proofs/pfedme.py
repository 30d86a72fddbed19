"""pFedMe: steps along the gradient of the Moreau envelope."""

import torch
import toy

SPEC = {"name": "pfedme", "strength": 2.0, "inner": 2, "inner_lr": 0.1, "beta": 0.5}


def own(federation):
    return torch.stack(
        [federation.evaluator.own(federation.progress, k) for k in range(len(federation.prepared.train))]
    )


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 2 and 6, from 0, lr 0.1, lambda 2, two inner steps of 0.1, beta 0.5.

    Client 0: theta = 0 - 0.1 (-2 + 0) = 0.2, then 0.2 - 0.1 (-1.8 + 2 * 0.2) = 0.34; w_0 = 0 - 0.1 * 2 (0 - 0.34) = 0.068.
    Client 1: theta = 0.6, then 0.6 - 0.1 (-5.4 + 1.2) = 1.02; w_1 = 0.204. Mean 0.136, of which the server takes half.
    """
    made = toy.federate(toy.quadratic([[2.0], [6.0]], SPEC), folder, 1)
    torch.testing.assert_close(own(made), torch.tensor([[0.34], [1.02]]))
    torch.testing.assert_close(made.progress.w, torch.tensor([0.068]))


def identity(folder):
    """One inner step of rate 1 / lambda: lambda (w - theta) is the gradient, and pFedMe is FedAvg."""
    spec = {"name": "pfedme", "strength": 8.0, "inner": 1, "inner_lr": 0.125}
    mine = toy.vectors(toy.factors(spec, local={"steps": 3}), folder, 3)
    plain = toy.vectors(toy.factors("fedavg", local={"steps": 3}), folder, 3)
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-6)  # lambda (w - theta) rounds at the size of lambda w


def property(folder):
    """Many inner steps find the argmin, (h c + lambda w) / (h + lambda); what is frozen moves in no vector."""
    spec = SPEC | {"inner": 100, "beta": 1.0}
    made = toy.federate(toy.quadratic([[2.0], [6.0]], spec, start=[1.0], curvature=[1.0, 3.0]), folder, 1)
    torch.testing.assert_close(own(made), torch.tensor([[(2 + 2 * 1) / 3], [(3 * 6 + 2 * 1) / 5]]))
    frozen = toy.federate(toy.factors(SPEC | {"with": [{"name": "ffa_lora"}]}, local={"steps": 2}), folder, 2)
    a = frozen.layout.mask(lambda s: s.role == "lora_A")
    assert torch.equal(own(frozen)[:, a], frozen.prepared.initial[a].expand(4, -1))
