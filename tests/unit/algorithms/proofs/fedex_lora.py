"""FedEx-LoRA: the means, and their residual in the base weights."""

import torch
import toy
from lora_hand import SMALL, dense, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "fedex_lora"}


def hand(folder):
    """p = 1/4, 3/4: A = [1, 0.75], B = [0.25, 1.5], B A = [[0.25, 0.1875], [1.5, 1.125]].

    The mean of the products is [[1, 0], [0, 0]] / 4 + 3 [[0, 0], [2, 2]] / 4 = [[0.25, 0], [1.5, 1.5]], so the residual is
    [[0, -0.1875], [0, 0.375]], of rank 1.
    """
    fedex, w = algorithms.build(SPEC, folder), vector([1, 0], [0, 0], 0)
    rows = torch.stack([vector([1, 0], [1, 0], 1), vector([1, 1], [0, 2], 5)])
    new, server = serve(fedex, w, rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([1, 0.75], [0.25, 1.5], 4))
    assert server["residual.U.l0"].shape == (2, 1) and server["residual.V.l0"].shape == (1, 2)
    torch.testing.assert_close(
        server["residual.U.l0"] @ server["residual.V.l0"], torch.tensor([[0, -0.1875], [0, 0.375]])
    )
    torch.testing.assert_close(dense(new, server, SMALL)[0], torch.tensor([[0.25, 0], [1.5, 1.5]], dtype=torch.float64))
    assert set(fedex.broadcast(new, server)) == {"fresh.U.l0", "fresh.V.l0"}


def identity(folder):
    """With one client there is no residual, and it is FedAvg."""
    mine = toy.federate(toy.factors(SPEC, clients=1, local={"steps": 3}), folder, 3)
    plain = toy.vectors(toy.factors("fedavg", clients=1, local={"steps": 3}), folder, 3)
    torch.testing.assert_close(mine.progress.w, plain, rtol=0, atol=1e-7)
    for whole, factors in zip(
        dense(mine.progress.w, mine.progress.server, mine.layout), dense(plain, {}, mine.layout), strict=True
    ):
        torch.testing.assert_close(whole, factors, rtol=0, atol=1e-7)


def property(folder):
    """Exact in every round, where the product of the means is not; the residual is part of the model that is judged."""
    options = {"local": {"steps": 5}, "evaluation": {"every": 1}}
    mine, plain = (toy.federate(toy.factors(s, **options), folder, 3) for s in (SPEC, "fedavg"))
    assert all(r["aggregation_error"] < 1e-6 for r in records(mine)[1:])
    assert all(r["aggregation_error"] > 1e-2 for r in records(plain)[1:])
    torch.testing.assert_close(
        toy.vectors(toy.factors(SPEC, **options), folder, 1), toy.vectors(toy.factors("fedavg", **options), folder, 1)
    )
    assert abs(records(mine)[1]["eval_loss"] - records(plain)[1]["eval_loss"]) > 1e-3
