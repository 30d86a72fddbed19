"""FedIT: the factors averaged, each by itself."""

import torch
import toy
from lora_hand import serve, vector

from fedloom import algorithms

SPEC = None  # it is federated averaging, of LoRA factors


def hand(folder):
    """p = 1/4, 3/4: A = [1, 0.75], B = [0.25, 1.5], head = (1 + 3 * 5) / 4 = 4."""
    w, rows = vector([1, 0], [0, 0], 0), torch.stack([vector([1, 0], [1, 0], 1), vector([1, 1], [0, 2], 5)])
    new, server = serve(algorithms.build({"name": "fedit"}, folder), w, rows, [1.0, 3.0])
    torch.testing.assert_close(new, vector([1, 0.75], [0.25, 1.5], 4))
    assert server == {}


def identity(folder):
    """Bit for bit FedAvg."""
    mine = toy.vectors(toy.factors("fedit", local={"steps": 3}), folder, 3)
    assert torch.equal(mine, toy.vectors(toy.factors("fedavg", local={"steps": 3}), folder, 3))
