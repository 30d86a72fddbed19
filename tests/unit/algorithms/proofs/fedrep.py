"""FedRep: steps on the private head, then on the shared body."""

import torch
import toy

SPEC = {"name": "fedrep", "head_steps": 2}


def own(federation):
    return torch.stack(
        [federation.evaluator.own(federation.progress, k) for k in range(len(federation.prepared.train))]
    )


def hand(folder):
    """f_k = 1/2 (b h - y_k)^2, y = 2 and 4, from b = h = 1, lr 0.1; two steps on h, then one on b.

    Client 0: error -1, h = 1.1; error -0.9, h = 1.19; error -0.81, b = 1 + 0.1 * 0.81 * 1.19 = 1.09639.
    Client 1: error -3, h = 1.3; error -2.7, h = 1.57; error -2.43, b = 1 + 0.1 * 2.43 * 1.57 = 1.38151.
    Shared b = 1.23895.
    """
    made = toy.federate(toy.product([2.0, 4.0], SPEC), folder, 1)
    torch.testing.assert_close(own(made), torch.tensor([[1.23895, 1.19], [1.23895, 1.57]]))
    torch.testing.assert_close(made.progress.w, torch.tensor([1.23895, 1.0]))


def identity(folder):
    """With every layer in the head each client trains alone: the steps on the body move nothing."""
    spec = {"name": "fedrep", "patterns": ["."], "head_steps": 3}
    mine = toy.federate(toy.factors(spec, local={"steps": 3}), folder, 3)
    alone = toy.federate(toy.factors("local", local={"steps": 3}), folder, 3)
    torch.testing.assert_close(own(mine), own(alone), rtol=0, atol=1e-7)


def property(folder):
    """Targets that differ only by the head: a shared body and own heads fit them, one model for all cannot."""
    targets, sections = [1.0, 4.0, -2.0], {"local": {"steps": 3}}
    mine = toy.federate(toy.product(targets, {"name": "fedrep"}, **sections), folder, 20)
    alike = toy.federate(toy.product(targets, "fedavg", **sections), folder, 20)
    for k, target in enumerate(targets):
        body, head = own(mine)[k]
        assert abs(float(body * head) - target) < 1e-3
    assert max(abs(float(alike.progress.w.prod()) - target) for target in targets) > 2
