"""FLoRA: factors stacked into the base weights, new ones for the next round."""

import torch
import toy
from lora_hand import SMALL, dense, mean_of_products, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "flora"}


def hand(folder):
    """p = 1/4, 3/4: U = [0.25 B_1, 0.75 B_2] = [[0.25, 0], [0, 1.5]], V = [A_1; A_2] = [[1, 0], [1, 1]]; B is zero again, A new."""
    flora, w = algorithms.build(SPEC, folder), vector([1, 0], [0, 0], 0)
    rows = torch.stack([vector([1, 0], [1, 0], 1), vector([1, 1], [0, 2], 5)])
    new, server = serve(flora, w, rows, [1.0, 3.0])
    assert server["fresh.U.l0"].tolist() == [[0.25, 0], [0, 1.5]] and server["fresh.V.l0"].tolist() == [[1, 0], [1, 1]]
    assert new[2:].tolist() == [0, 0, 4] and (new[:2].abs() <= 0.5**0.5).all() and (new[:2] != w[:2]).all()
    torch.testing.assert_close(dense(new, server, SMALL)[0], torch.tensor([[0.25, 0], [1.5, 1.5]], dtype=torch.float64))
    torch.testing.assert_close(dense(new, server, SMALL), mean_of_products(rows, [1.0, 3.0], SMALL))
    assert flora.receives(SMALL, 2).tolist() == [False] * 4 + [True]


def identity(folder):
    """With one client, the model after the first round is FedAvg's: the product is in the base weights instead."""
    mine = toy.federate(toy.factors(SPEC, clients=1, local={"steps": 3}), folder, 1)
    plain = toy.federate(toy.factors("fedavg", clients=1, local={"steps": 3}), folder, 1)
    for own, other in zip(*(dense(f.progress.w, f.progress.server, f.layout) for f in (mine, plain)), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-7)
    head = mine.layout.mask(lambda s: s.role == "head")
    torch.testing.assert_close(mine.progress.w[head], plain.progress.w[head], rtol=0, atol=1e-7)


def property(folder):
    """Exact in every round; a client is sent every other client's factors."""
    made = toy.federate(toy.factors(SPEC, local={"steps": 5}), folder, 4)
    assert all(r["aggregation_error"] < 1e-6 for r in records(made)[1:])
    factors = int(made.layout.mask(lambda s: s.role != "head").sum())
    assert records(made)[2]["bytes_down"] > 4 * 4 * 4 * factors  # clients x clients x float32
