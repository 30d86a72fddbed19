"""FwdLLM: forward gradients of batches, asked for until their variance is low."""

import json
from dataclasses import replace

import torch
import toy
from zeroth import close, drawn, on_maps

from fedloom.algorithms.base import Round
from fedloom.local.train import Trainer
from fedloom.selection.pool import uniform
from fedloom.vector.directions import DirectionStream, draw
from fedloom.vector.pacing import scalar_variance

PLAIN = {"name": "fwdllm", "var_control": False, "perturbation_sampling": False}
SPEC = {"name": "fwdllm", "var_threshold": 1e6}
GRADIENT = {"kind": "central", "directions": 2, "h": 0.02}
GUIDED = GRADIENT | {"guidance": "top_cosine"}
SECTIONS = {"local": {"gradient": GUIDED, "steps": 1}}
TOY = on_maps(SPEC, GUIDED | {"directions": 20})
CENTRES = torch.tensor([[1.0, 0.0, 2.0], [3.0, -1.0, 1.0]])


def mean_gradient(made, w, round, clients=(0, 1)):
    """The unweighted mean over clients of their forward gradients, and the derivatives."""
    found, scalars = [], []
    for k in clients:
        v = drawn(made.binding.layout, round, f"c{k}", count=2)
        s = (w - CENTRES[k]) @ v.T
        found.append(s @ v / 2)
        scalars.append(s)
    return torch.stack(found).mean(0), torch.cat(scalars)


def hand(folder):
    """One attempt a round: w -= lr sum_k sum_i s_ki v_ki / N, whatever the clients' rows; then guided by the last gradient."""
    made = toy.quadratic(CENTRES.tolist(), PLAIN, rows=[1, 3], local={"gradient": GRADIENT})
    w = torch.zeros(3)
    for round in (1, 2):
        w = w - 0.1 * mean_gradient(made, w, round)[0]
    close(toy.vectors(made, folder, 2), w)
    guided(folder)


def guided(folder):
    """Rounds 1 and 3 are plain, round 2 takes of 20 draws the 2 nearest to the step of round 1."""
    made = toy.quadratic(CENTRES.tolist(), SPEC, local={"gradient": GUIDED})
    w, reference = torch.zeros(3), None
    for round in (1, 2, 3):
        found = []
        for k in (0, 1):
            stream = DirectionStream(0, "directions", round, f"c{k}", 0)
            v, _ = draw(made.binding.layout, stream, 2, guidance="top_cosine", reference=reference)
            found.append((w - CENTRES[k]) @ v.T @ v / 2)
        step = -0.1 * torch.stack(found).mean(0)
        w, reference = w + step, None if round == 2 else step
    close(toy.vectors(made, folder, 3), w)


def identity(folder):
    """With d orthogonal directions, all accepted, it is FedSGD on clients of as many rows."""
    local = {"gradient": GRADIENT | {"directions": 3, "distribution": "orthogonal"}}
    made = toy.quadratic(CENTRES.tolist(), PLAIN, local=local)
    close(toy.vectors(made, folder, 3), toy.vectors(toy.quadratic(CENTRES.tolist(), "fedsgd"), folder, 3), 1e-4)


def property(folder):
    """A rejected answer changes no bit, is kept, and the same cohort is asked again with the same batches; retries are capped."""
    spec = {"name": "fwdllm", "var_threshold": 1e-6, "max_retries": 2, "perturbation_sampling": False}
    made = toy.quadratic(CENTRES.tolist() * 2, spec, local={"gradient": GRADIENT}, federation={"clients_per_round": 1})
    done = toy.federate(made, folder, 0)
    w0, cohorts = done.progress.w.clone(), []
    for number in range(1, 7):
        done.round(number)
        cohorts.append(_clients(done, number))
        if number % 3:
            assert torch.equal(done.progress.w, w0)
        else:  # accepted at the cap
            assert not torch.equal(done.progress.w, w0)
            w0 = done.progress.w.clone()
    done.run_dir.close()
    asked = [f"c{uniform(4, 1, seed=0, round=first)[0]}" for first in (1, 4)]
    assert cohorts == [asked[0]] * 3 + [asked[1]] * 3
    every_draw_counts(folder)
    same_batches(folder)
    dense_and_seeds(folder)


def every_draw_counts(folder):
    """The step is the mean of all answers so far, made in the first round in which the variance of all of them is low enough."""
    rows = [1, 3]  # which play no part
    made = toy.quadratic(CENTRES.tolist(), PLAIN, rows=rows, local={"gradient": GRADIENT})
    w0, found = torch.zeros(3), [mean_gradient(made, torch.zeros(3), r) for r in range(1, 6)]
    variances = [scalar_variance(torch.cat([s for _, s in found[:n]])) for n in range(1, 6)]
    accepted = set()
    for threshold in variances:
        n = next(i for i, v in enumerate(variances, 1) if v <= threshold * 1.001)
        spec = {"name": "fwdllm", "var_threshold": threshold * 1.001, "perturbation_sampling": False}
        made = toy.quadratic(CENTRES.tolist(), spec, rows=rows, local={"gradient": GRADIENT})
        assert n == 1 or torch.equal(toy.vectors(made, folder, n - 1), w0)
        close(toy.vectors(made, folder, n), -0.1 * torch.stack([g for g, _ in found[:n]]).mean(0))
        accepted.add(n)
    assert accepted - {1}, "some thresholds ask again"


def same_batches(folder):
    """The rows of a retry are those of the first attempt, of the next accepted round others; no wait for rounds that failed."""
    spec = {"name": "fwdllm", "var_threshold": 1e-9, "max_retries": 1, "perturbation_sampling": False}
    made = toy.factors(spec, rows=12, local={"gradient": GRADIENT, "batch_size": 2})
    rows = []
    done = toy.federate(made, folder, 0)
    plan = Trainer.member

    def member(self, partition, client, round, *more):
        found = plan(self, partition, client, round, *more)
        rows.append((client, *found.steps[0][0].tolist()))
        return found

    Trainer.member = member
    try:
        for number in (1, 2, 3):
            done.round(number)
    finally:
        Trainer.member = plan
    done.run_dir.close()
    first, again, then = rows[:4], rows[4:8], rows[8:12]
    assert sorted(first) == sorted(again) != sorted(then)
    algorithm = made.algorithm
    facts = Round(7, 4, 4, made.binding.layout, experiment=made.experiment)
    aggregate = {"delta": torch.ones_like(made.initial), "fwdllm.squares": torch.ones(1)}
    _, server = algorithm.apply(
        made.initial, aggregate, algorithm.server_state(made.initial, made.binding.layout), facts
    )
    assert [algorithm.asks(server, r) for r in (8, 9)] == [7, 7]


def dense_and_seeds(folder):
    """Sending the derivatives alone ends in the same bytes, in far smaller messages."""
    ends, sizes = [], []
    for upload in ("delta", "seeds"):
        made = toy.quadratic(
            [[1.0] * 500, [2.0] * 500], SPEC, local={"gradient": GUIDED | {"upload": upload}, "lr": 1e-3}
        )
        done = toy.federate(replace(made), folder, 3)
        ends.append(done.progress.w)
        sizes.append(json.loads((done.run_dir.path / "metrics.jsonl").read_text().splitlines()[-1])["bytes_up"])
    assert torch.equal(*ends) and sizes[1] < 0.4 * sizes[0]


def _clients(done, number):
    lines = map(json.loads, (done.run_dir.path / "clients.jsonl").read_text().splitlines())
    return next(line["client"] for line in lines if line.get("round") == number and line.get("status") == "ok")
