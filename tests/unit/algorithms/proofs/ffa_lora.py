"""FFA-LoRA: A as it was drawn, B averaged."""

import torch
import toy
from lora_hand import SMALL, dense, mean_of_products, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "ffa_lora"}


def hand(folder):
    """A_0 = [3, 4] for both; B = [0.25, 1.5]; B A = [[0.75, 1], [4.5, 6]] = [[3, 4], [0, 0]] / 4 + 3 [[0, 0], [6, 8]] / 4."""
    ffa, w = algorithms.build(SPEC, folder), vector([3, 4], [0, 0], 0)
    rows = torch.stack([vector([3, 4], [1, 0], 1), vector([3, 4], [0, 2], 5)])
    new, server = serve(ffa, w, rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([3, 4], [0.25, 1.5], 4))
    torch.testing.assert_close(dense(new, server, SMALL)[0], torch.tensor([[0.75, 1], [4.5, 6]], dtype=torch.float64))
    torch.testing.assert_close(dense(new, server, SMALL), mean_of_products(rows, [1.0, 3.0], SMALL))
    assert ffa.trains(SMALL, 1).tolist() == ffa.receives(SMALL, 1).tolist() == [False, False, True, True, True]


def identity(folder):
    """The first round is RoLoRA's, which learns B in odd rounds."""
    mine = toy.vectors(toy.factors(SPEC, local={"steps": 3}), folder, 1)
    torch.testing.assert_close(
        mine, toy.vectors(toy.factors("rolora", local={"steps": 3}), folder, 1), rtol=0, atol=1e-7
    )


def property(folder):
    """A never moves and never travels; what is aggregated is exact in every round."""
    made = toy.federate(toy.factors(SPEC, local={"steps": 3, "optimizer": "adamw", "weight_decay": 0.1}), folder, 3)
    layout = made.layout
    a = layout.mask(lambda s: s.role == "lora_A")
    assert torch.equal(made.progress.w[a], made.prepared.initial[a])
    assert all(r["aggregation_error"] < 1e-6 for r in records(made)[1:])
    plain = toy.federate(toy.factors("fedavg", local={"steps": 3}), folder, 1)
    less = 4 * 4 * int(a.sum())
    assert abs(records(plain)[1]["bytes_down"] - records(made)[1]["bytes_down"] - less) < 40
    assert abs(records(plain)[1]["bytes_up"] - records(made)[1]["bytes_up"] - less) < 40
