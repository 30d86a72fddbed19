"""Optimizers over a bank, against torch.optim run row by row: the slow, readable twin."""

import pytest
import torch

from fedloom.config.schema import Local
from fedloom.vector.bank import clip_rows
from fedloom.vector.optim import optimizer

CASES = {
    "sgd": ({"optimizer": "sgd"}, torch.optim.SGD, {}),
    "sgd-decay": ({"optimizer": "sgd", "weight_decay": 0.1}, torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": ({"optimizer": "sgd", "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (
        {"optimizer": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": ({"optimizer": "adam", "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.1, "betas": [0.8, 0.95], "eps": 1e-6},
        torch.optim.AdamW,
        {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_torch_row_by_row(case):
    """Three rows that stop after 5, 3 and 1 steps, each with its own rate, as torch.optim would move each alone."""
    options, twin, twin_options = CASES[case]
    torch.manual_seed(0)
    start, grads = torch.randn(3, 40), torch.randn(5, 3, 40)
    steps, rates = [5, 3, 1], [0.1, 0.02, 0.3]
    ours = optimizer(Local(steps=1, **options))
    w = start.clone()
    state = ours.init(w)
    for s in range(5):
        a = sum(n > s for n in steps)
        rows = {k: v[:a] for k, v in state.items()}
        ours.step(w[:a], grads[s, :a].clone(), rows, torch.tensor(rates[:a]).unsqueeze(1))
    for k, n in enumerate(steps):
        p = torch.nn.Parameter(start[k].clone())
        theirs = twin([p], lr=rates[k], **twin_options)
        for s in range(n):
            p.grad = grads[s, k].clone()
            theirs.step()
        torch.testing.assert_close(w[k], p.detach(), rtol=2e-6, atol=2e-6)
    assert state["step"].tolist() == steps


def test_adam_first_step_by_hand():
    """Kingma & Ba, algorithm 1, t = 1: m-hat = g, v-hat = g^2, so w moves by lr g / (|g| + eps) = lr sign(g)."""
    ours = optimizer(Local(steps=1, optimizer="adam"))
    w = torch.tensor([[1.0, -2.0]])
    ours.step(w, torch.tensor([[0.5, -4.0]]), ours.init(w), torch.tensor([[0.1]]))
    torch.testing.assert_close(w, torch.tensor([[0.9, -1.9]]))


def test_clip_is_per_row():
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    clipped = clip_rows(g, 1.0)
    torch.testing.assert_close(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
