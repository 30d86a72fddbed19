"""APFL: each client mixes a vector of its own with the shared one."""

import torch
import toy

SPEC = {"name": "apfl", "alpha": 0.5}


def own(federation):
    return torch.stack(
        [federation.evaluator.own(federation.progress, k) for k in range(len(federation.prepared.train))]
    )


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 2 and 6, from 0, lr 0.1, alpha 0.5, two steps.

    Client 0: step 1, gradient -2 at v = w = 0: v = 0.1 * 0.5 * 2 = 0.1, w = 0.2. Step 2, v-bar = 0.15, gradient -1.85:
    v = 0.1 + 0.1 * 0.5 * 1.85 = 0.1925, w = 0.2 + 0.1 * 1.8 = 0.38.
    Client 1, three times that: v = 0.5775, w = 1.14. Server: w = 0.76.
    Judged: 0.5 * 0.1925 + 0.5 * 0.76 = 0.47625 and 0.5 * 0.5775 + 0.38 = 0.66875.
    Adaptive (at step 1, v = w): alpha_0 = 0.5 - 0.1 (0.1 - 0.2)(-1.85) = 0.4815, alpha_1 = 0.5 - 0.1 (0.3 - 0.6)(-5.55) = 0.3335.
    """
    made = toy.federate(toy.quadratic([[2.0], [6.0]], SPEC, local={"steps": 2}), folder, 1)
    torch.testing.assert_close(made.progress.w, torch.tensor([0.76]))
    torch.testing.assert_close(own(made), torch.tensor([[0.47625], [0.66875]]))
    made = toy.federate(toy.quadratic([[2.0], [6.0]], SPEC | {"adaptive": True}, local={"steps": 2}), folder, 1)
    kept = [made.store.load(f"c{k}", 2) for k in range(2)]
    torch.testing.assert_close(torch.cat([s["apfl.alpha"] for s in kept]), torch.tensor([0.4815, 0.3335]))
    torch.testing.assert_close(torch.cat([s["apfl.v"] for s in kept]), torch.tensor([0.1925, 0.5775]))


def identity(folder):
    """The server's vector is FedAvg's whatever alpha; with alpha 0 so are the clients' own."""
    plain = toy.vectors(toy.factors("fedavg", local={"steps": 3}), folder, 3)
    for spec in ({"alpha": 0.0}, {"alpha": 0.7}, {"alpha": 0.7, "adaptive": True}):
        mine = toy.federate(toy.factors({"name": "apfl", **spec}, local={"steps": 3}), folder, 3)
        torch.testing.assert_close(mine.progress.w, plain, rtol=0, atol=1e-7)
        apart = (own(mine) - plain).abs().max()
        assert apart <= 1e-7 if spec["alpha"] == 0 else apart > 1e-3


def property(folder):
    """With alpha 1 each client trains alone; a learnt alpha stays in [0, 1]."""
    mine = toy.federate(toy.factors({"name": "apfl", "alpha": 1.0}, local={"steps": 3}), folder, 3)
    alone = toy.federate(toy.factors("local", local={"steps": 3}), folder, 3)
    torch.testing.assert_close(own(mine), own(alone), rtol=0, atol=1e-6)
    far = toy.quadratic([[50.0], [-50.0]], {"name": "apfl", "alpha": 0.9, "adaptive": True}, local={"steps": 5})
    made = toy.federate(far, folder, 3)
    alphas = torch.cat([made.store.load(f"c{k}", 4)["apfl.alpha"] for k in range(2)])
    assert ((alphas >= 0) & (alphas <= 1)).all() and (alphas != 0.9).all()
