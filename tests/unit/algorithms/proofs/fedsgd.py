"""FedSGD: one gradient over all rows a round."""

from pathlib import Path

import torch
import toy

from fedloom import algorithms

SPEC = {"name": "fedsgd"}


def TOY(spec, **sections):
    """Batches of 4 of a client's 12 rows: a local step sees a third of what FedSGD's gradient does."""
    local = {"batch_size": 4} | sections.pop("local", {})
    return toy.factors(spec, local=local, **sections)


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, lr 0.1, weights 1 and 3: gradients -1 and -3, w = 0.1 * (1 + 9) / 4 = 0.25.

    Round 2: gradients -0.75 and -2.75, w = 0.25 + 0.1 * (0.75 + 8.25) / 4 = 0.475.
    """
    made = toy.federate(toy.quadratic([[1.0], [3.0]], SPEC, rows=[1, 3], local={"batch_size": 1}), folder, 2)
    torch.testing.assert_close(made.progress.w, torch.tensor([0.475]))
    records = (made.run_dir.path / "metrics.jsonl").read_text()
    assert '"train_loss": 3.5' in records  # (1 * 1/2 + 3 * 9/2) / 4


def identity(folder):
    """FedAvg with one step on all rows."""
    a, b = (toy.vectors(toy.factors(name), folder, 3) for name in ("fedsgd", "fedavg"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """With weights by samples it is gradient descent on the pooled rows."""
    made = toy.factors(SPEC, local={"batch_size": 5})
    pooled = made.with_algorithm(algorithms.build({"name": "central"}, Path.cwd()))
    whole = {"steps": None, "epochs": 1, "batch_size": 64}
    a, b = toy.vectors(made, folder, 3), toy.vectors(pooled, folder, 3, local=whole)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
