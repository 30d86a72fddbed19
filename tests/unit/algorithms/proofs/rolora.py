"""RoLoRA: B in odd rounds, A in even ones."""

import torch
import toy
from lora_hand import SMALL, dense, mean_of_products, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "rolora"}


def hand(folder):
    """Round 1 moves B [entries 2, 3], round 2 A [entries 0, 1], both the head.

    Round 2 with B = [1, 2]: A = ([1, 0] + 3 [1, 1]) / 4 = [1, 0.75], and B A = [[1, 0.75], [2, 1.5]] is the mean of the products.
    """
    rolora = algorithms.build(SPEC, folder)
    assert rolora.trains(SMALL, 1).tolist() == [False, False, True, True, True]
    assert rolora.trains(SMALL, 2).tolist() == [True, True, False, False, True]
    assert rolora.receives(SMALL, 1) is None
    rows = torch.stack([vector([1, 0], [1, 2], 1), vector([1, 1], [1, 2], 5)])
    new, server = serve(rolora, vector([0, 0], [1, 2], 0), rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([1, 0.75], [1, 2], 4))
    torch.testing.assert_close(dense(new, server, SMALL), mean_of_products(rows, [1.0, 3.0], SMALL))


def identity(folder):
    """The first round is FFA-LoRA's, in which A is never learnt."""
    mine = toy.vectors(toy.factors(SPEC, local={"steps": 3}), folder, 1)
    torch.testing.assert_close(
        mine, toy.vectors(toy.factors("ffa_lora", local={"steps": 3}), folder, 1), rtol=0, atol=1e-7
    )


def property(folder):
    """Exact in every round; each round moves one factor only, and half as much travels up."""
    prepared = toy.factors(SPEC, local={"steps": 3})
    ends = [prepared.initial, *(toy.vectors(prepared, folder, rounds) for rounds in (1, 2))]
    a, b = (prepared.binding.layout.mask(lambda s, role=role: s.role == role) for role in ("lora_A", "lora_B"))
    assert torch.equal(ends[1][a], ends[0][a]) and (ends[1] - ends[0])[b].abs().max() > 1e-3
    assert torch.equal(ends[2][b], ends[1][b]) and (ends[2] - ends[1])[a].abs().max() > 1e-3
    made = toy.federate(prepared, folder, 4)
    assert all(r["aggregation_error"] < 1e-6 for r in records(made)[1:])
