"""FedSVD: B averaged, A turned to the right singular vectors of the product."""

import torch
import toy
from lora_hand import dense, records, serve, vector

from fedloom import algorithms

SPEC = {"name": "fedsvd"}


def hand(folder):
    """A = [3, 4] fixed; B = ([1, 0] + 3 [0, 2]) / 4 = [0.25, 1.5]. B A has rank 1: V^T = A / |A| = [0.6, 0.8], U S = 5 B."""
    rows = torch.stack([vector([3, 4], [1, 0], 1), vector([3, 4], [0, 2], 5)])
    new, server = serve(algorithms.build(SPEC, folder), vector([3, 4], [0, 0], 0), rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([0.6, 0.8], [1.25, 7.5], 4))
    assert server == {}


def identity(folder):
    """The model after the first round is FFA-LoRA's, in other factors."""
    mine, plain = (toy.federate(toy.factors(s, local={"steps": 3}), folder, 1) for s in (SPEC, "ffa_lora"))
    for own, other in zip(*(dense(f.progress.w, {}, f.layout) for f in (mine, plain)), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-7)


def property(folder):
    """The rows of A are orthonormal after every round, B's columns orthogonal, the largest first; the aggregation is exact."""
    made = toy.federate(toy.factors(SPEC, local={"steps": 5}), folder, 3)
    views = made.layout.views(made.progress.w)
    for name, a in views.items():
        if ".lora_A." in name:
            torch.testing.assert_close(a @ a.T, torch.eye(2), rtol=0, atol=1e-6)
            squares = (b := views[name.replace("lora_A", "lora_B")]).T @ b
            assert squares[0, 1].abs() < 1e-6 and squares[0, 0] >= squares[1, 1] > 0
    assert all(r["aggregation_error"] < 1e-6 for r in records(made)[1:])
