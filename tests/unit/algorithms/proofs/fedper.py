"""FedPer: the private layers stay, the others are averaged."""

import json

import torch
import toy

SPEC = {"name": "fedper"}


def own(federation):
    return torch.stack(
        [federation.evaluator.own(federation.progress, k) for k in range(len(federation.prepared.train))]
    )


def hand(folder):
    """f_k = 1/2 (b h - y_k)^2, y = 2 and 4, from b = h = 1, lr 0.1, one step a round; h is private.

    Round 1: client 0, error 1 - 2 = -1: b = 1 + 0.1 * 1 * 1 = 1.1, h = 1.1. Client 1, error -3: b = h = 1.3. Shared b = 1.2.
    Round 2: client 0 from (1.2, 1.1), error 1.32 - 2 = -0.68: b = 1.2 + 0.1 * 0.68 * 1.1 = 1.2748, h = 1.1 + 0.1 * 0.68 * 1.2
    = 1.1816. Client 1 from (1.2, 1.3), error 1.56 - 4 = -2.44: b = 1.2 + 0.1 * 2.44 * 1.3 = 1.5172, h = 1.3 + 0.1 * 2.44 * 1.2
    = 1.5928. Shared b = 1.396; the server's h is never touched.
    """
    made = toy.federate(toy.product([2.0, 4.0], SPEC), folder, 1)
    torch.testing.assert_close(own(made), torch.tensor([[1.2, 1.1], [1.2, 1.3]]))
    made.round(2)
    torch.testing.assert_close(made.progress.w, torch.tensor([1.396, 1.0]))
    torch.testing.assert_close(own(made), torch.tensor([[1.396, 1.1816], [1.396, 1.5928]]))


def identity(folder):
    """With every layer private each client trains alone, and the server's vector never moves."""
    mine = toy.federate(toy.factors({"name": "fedper", "patterns": ["."]}, local={"steps": 3}), folder, 3)
    alone = toy.federate(toy.factors("local", local={"steps": 3}), folder, 3)
    torch.testing.assert_close(own(mine), own(alone), rtol=0, atol=1e-7)
    assert torch.equal(mine.progress.w, mine.prepared.initial)


def property(folder):
    """What is private is never sent: 21 entries of 4 bytes, for each of 4 clients, both ways (a header's digits aside)."""

    def sent(spec):
        made = toy.federate(toy.factors(spec), folder, 1)
        record = json.loads((made.run_dir.path / "metrics.jsonl").read_text().splitlines()[-1])
        return record["bytes_up"], record["bytes_down"]

    for whole, shared in zip(sent("fedavg"), sent(SPEC), strict=True):
        assert 0 <= whole - shared - 4 * 4 * 21 <= 4 * 16
