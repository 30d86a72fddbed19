"""Each client alone."""

import torch
import toy

SPEC = {"name": "local"}


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, lr 0.1, two rounds of one step: 0.1 then 0.19, and 0.3 then 0.57; no bytes."""
    made = toy.federate(toy.quadratic([[1.0], [3.0]], SPEC), folder, 2)
    for client, after in (("c0", (0.1, 0.19)), ("c1", (0.3, 0.57))):
        for round, value in enumerate(after, 1):
            torch.testing.assert_close(made.store.load(client, round + 1)["private"], torch.tensor([value]))
    assert made.progress.w.item() == 0.0 == made.progress.totals["bytes_up"] == made.progress.totals["bytes_down"]


def identity(folder):
    """A client alone is FedAvg with one client."""
    alone = toy.federate(toy.factors("local", clients=1, local={"steps": 3}), folder, 3)
    plain = toy.vectors(toy.factors("fedavg", clients=1, local={"steps": 3}), folder, 3)
    torch.testing.assert_close(alone.store.load("c0", 4)["private"], plain, rtol=0, atol=1e-7)
