"""FedSA-LoRA: A shared, B each client's own."""

import torch
import toy
from lora_hand import SMALL, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "fedsa_lora"}


def hand(folder):
    """What leaves is A and the head: A = ([1, 0] + 3 [1, 1]) / 4 = [1, 0.75], head = 4; the server's B is never touched."""
    fedsa = algorithms.build(SPEC, folder)
    assert fedsa.private(SMALL).tolist() == [False, False, True, True, False]
    whole = algorithms.build(SPEC | {"share_heads": False}, folder)
    assert whole.private(SMALL).tolist() == [False, False, True, True, True]
    rows = torch.stack([vector([1, 0], [0, 0], 1), vector([1, 1], [0, 0], 5)])  # B does not travel
    new, _ = serve(fedsa, vector([1, 0], [0, 0], 0), rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([1, 0.75], [0, 0], 4))


def identity(folder):
    """One client's own vector is FedAvg's: there is nobody to share with."""
    mine = toy.federate(toy.factors(SPEC, clients=1, local={"steps": 3}), folder, 3)
    plain = toy.vectors(toy.factors("fedavg", clients=1, local={"steps": 3}), folder, 3)
    private = mine.prepared.algorithm.private(mine.layout)
    own = mine.progress.w.masked_scatter(private, mine.store.load("c0", 4)["private"])
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-7)


def property(folder):
    """The clients' B differ, the server's stays zero; no aggregation error is claimed of products that the server cannot know."""
    made = toy.federate(toy.factors(SPEC, local={"steps": 3}), folder, 2)
    kept = [made.store.load(f"c{k}", 3)["private"] for k in range(4)]
    assert all((kept[0] - other).abs().max() > 1e-3 for other in kept[1:])
    assert not made.progress.w[made.prepared.algorithm.private(made.layout)].any()
    assert [r.get("aggregation_error") for r in records(made)] == [None] * 3
    assert not (made.run_dir.path / "layers.jsonl").exists()
