"""Fine-tuning before evaluation: FedAvg, and some steps of each client's own when it is judged."""

import torch
import toy

SPEC = {"name": "finetune", "steps": 2}


def own(federation):
    return torch.stack(
        [federation.evaluator.own(federation.progress, k) for k in range(len(federation.prepared.train))]
    )


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 2 and 6, from 0, lr 0.1, one step a round: w = 0.1 * 4 = 0.4.

    Judged after two steps: client 0, 0.4 + 0.16 = 0.56, then 0.56 + 0.144 = 0.704; client 1, 0.96, then 0.96 + 0.504 = 1.464.
    """
    made = toy.federate(toy.quadratic([[2.0], [6.0]], SPEC), folder, 1)
    torch.testing.assert_close(made.progress.w, torch.tensor([0.4]))
    torch.testing.assert_close(own(made), torch.tensor([[0.704], [1.464]]))


def identity(folder):
    """The server's vector is FedAvg's, bit for bit, however often clients are judged."""
    plain = toy.vectors(toy.factors("fedavg", local={"steps": 3}), folder, 3)
    mine = toy.vectors(toy.factors(SPEC, local={"steps": 3}, evaluation={"clients_every": 1}), folder, 3)
    assert torch.equal(mine, plain)


def property(folder):
    """The more steps, the better a client fits its own rows."""
    losses = []
    for steps in (1, 5, 20):
        made = toy.federate(toy.factors({"name": "finetune", "steps": steps}), folder, 2)
        records = [r for r in made.evaluator.clients(made.progress) if r["evaluated"] == "own"]
        losses.append(sum(r["eval_loss"] for r in records))
    assert losses[0] > losses[1] > losses[2]
