"""FlexLoRA: the best rank-r approximation of the mean of the products."""

import torch
import toy
from lora_hand import dense, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "flexlora"}


def hand(folder):
    """The mean of the products is [[1, 0], [0, 0]] / 4 + 3 [[0, 0], [0, 2]] / 4 = diag(0.25, 1.5): its best rank 1 is
    1.5 e_2 e_2^T, so B = [0, 1.5], A = [0, 1].
    """
    w, rows = vector([1, 0], [0, 0], 0), torch.stack([vector([1, 0], [1, 0], 1), vector([0, 1], [0, 2], 5)])
    new, server = serve(algorithms.build(SPEC, folder), w, rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([0, 1], [0, 1.5], 4), rtol=0, atol=1e-7)
    assert server == {}


def identity(folder):
    """With one client nothing is lost: the model after the first round is FedAvg's, in other factors."""
    mine = toy.federate(toy.factors(SPEC, clients=1, local={"steps": 3}), folder, 1)
    plain = toy.federate(toy.factors("fedavg", clients=1, local={"steps": 3}), folder, 1)
    for own, other in zip(*(dense(f.progress.w, {}, f.layout) for f in (mine, plain)), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-7)


def property(folder):
    """No rank-r pair is nearer to the mean of the products: from the same clients it errs less than the means do."""
    mine, plain = (toy.federate(toy.factors(s, local={"steps": 5}), folder, 1) for s in (SPEC, "fedavg"))
    pairs = zip(records(mine, "layers.jsonl"), records(plain, "layers.jsonl"), strict=True)
    assert all(0 < a["aggregation_error"] < b["aggregation_error"] for a, b in pairs)
