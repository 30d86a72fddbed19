"""What FwdLLM as released does wrong, and that it is right here: a test for each mistake.

Two of them cannot occur by construction, and it is that which is tested: pacing reads derivatives alone, so there is no index of
a tensor to watch; and only what learns is in the trainable vector, so messages hold nothing that is frozen. The variance is one
number a round because the server makes it of all uploads. A row carries its number, and no thread reads rows, so none can change
places.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import toy
from project import LANGUAGE, experiment, experiment_file
from wide_model import wide

from fedloom import algorithms, api
from fedloom.errors import ConfigError
from fedloom.local.prepare import prepare
from fedloom.local.train import Trainer
from fedloom.tasks.classification import Classification
from fedloom.vector.directions import DirectionStream, directions, draw
from fedloom.vector.layout import Layout
from fedloom.vector.pacing import half_split_variance, scalar_variance

CENTRAL = {"kind": "central", "directions": 2, "h": 0.02}
FWDLLM = {"name": "fwdllm", "perturbation_sampling": False}
PLAIN = FWDLLM | {"var_control": False}


def records(done):
    return [json.loads(line) for line in (done.run_dir.path / "metrics.jsonl").read_text().splitlines()]


# --- FwdLLM: what is trained, and what is sent ---


@pytest.mark.parametrize("section", ["adapter", "model", "algorithm", "local"])
def test_an_option_that_nothing_reads_is_refused(section, tmp_path):
    """As released, `--use_adapter True` is read by nobody, and the baselines fine-tune the whole model."""
    with pytest.raises(ConfigError, match=r"there is no such (key|option)"):
        changes = {"algorithm": {"name": "fedavg", "use_adapter": True}} if section == "algorithm" else {}
        experiment(tmp_path, LANGUAGE, **(changes or {f"{section}__use_adapter": True}))


@pytest.mark.parametrize("name", ["fedavg", "fedsgd", "fwdllm"])
def test_every_method_trains_the_adapter_that_is_asked_for_and_nothing_else(name, tmp_path):
    gradient = {"kind": "central", "guidance": "top_cosine"} if name == "fwdllm" else {"kind": "backprop"}
    local = {"optimizer": "sgd", "lr": 0.1, "steps": 1, "gradient": gradient}
    made = prepare(experiment(tmp_path, LANGUAGE, algorithm={"name": name}, local=local),
                   algorithms.build({"name": name}, tmp_path))  # fmt: skip
    frozen = {n: p.clone() for n, p in made.binding.model.named_parameters() if not p.requires_grad}
    assert frozen and all(".lora_" in s.name for s in made.binding.layout.slices)
    toy.federate(made, tmp_path, 2)
    now = dict(made.binding.model.named_parameters())
    assert all(torch.equal(now[n], before) for n, before in frozen.items())


def test_nothing_frozen_is_uploaded(tmp_path):
    """As released, every frozen parameter travels as a tensor of zeros: here 100 kB for the 4 kB that learn."""
    sizes = {}
    for width in (8, 80):
        done = toy.federate(wide(PLAIN, width, local={"gradient": CENTRAL}), tmp_path, 1)
        total = sum(p.numel() for p in done.prepared.binding.model.parameters())
        n = done.layout.n
        sizes[width] = (records(done)[1]["bytes_up"] / 3 - 4 * n, total / n)
    assert all(header < 700 for header, _ in sizes.values())
    assert sizes[80][1] > 20  # were they sent, a message would be so many times as large


# --- FwdLLM: candidates and pacing ---


def test_more_than_a_thousand_candidates_are_all_ranked():
    """As released, cosines of the last thousand alone come back, as if they were those of all."""
    layout, stream = Layout.of([("w", torch.empty(64))]), DirectionStream(0, "directions", 1, "c", 0)
    p = torch.randn(64, generator=torch.Generator().manual_seed(0))
    best = draw(layout, stream, 150, guidance="top_cosine", reference=p)[0]
    pool = directions(layout, stream.keys(1500))
    cosines = pool.double() @ p.double() / pool.double().norm(dim=1)
    order = cosines.argsort(descending=True)[:150]
    assert torch.equal(best, pool[order]) and bool((order < 500).any()) and bool((order >= 1000).any())


def test_the_statistic_is_that_of_all_slices_and_no_single_one_decides():
    """A tensor that is frozen, or has no gradient, would always be accepted."""
    layout = Layout.of([("still", torch.empty(3000)), ("moves", torch.empty(3000))])
    g = torch.cat([torch.zeros(3000), torch.randn(3000, generator=torch.Generator().manual_seed(1))]).double()
    V = directions(layout, DirectionStream(0, "directions", 1, "c", 0).keys(60))
    s = (V.double() @ g).float()
    watched = half_split_variance(s[:, None] * V)
    assert scalar_variance(s) == pytest.approx(watched, rel=0.1) and watched > 1


def test_the_variance_is_that_of_every_client_whichever_worker_has_it(tmp_path):
    """As released, that of the worker who answers last counts: a steep client elsewhere would go unseen."""
    ends = []
    for order in ([0, 1, 2], [2, 1, 0]):  # the steep client first, and last
        centres = [[30.0, 0.0], [0.1, 0.0], [0.1, 0.1]]
        for size in (1, 3):
            spec = FWDLLM | {"var_threshold": 1.0, "max_retries": 3}
            made = toy.quadratic([centres[i] for i in order], spec, local={"gradient": CENTRAL, "lr": 0.01})
            done = toy.federate(made, tmp_path, 1, engine={"group_size": size})
            assert torch.equal(done.progress.w, made.initial)  # sum s^2 of the steep one is far above the threshold
            done = toy.federate(made, tmp_path, 4, engine={"group_size": size})
            assert not torch.equal(done.progress.w, made.initial)
            ends.append(done.progress.w)
        torch.testing.assert_close(ends[-1], ends[-2], rtol=0, atol=1e-6)


def test_asking_again_ends_and_the_server_keeps_no_more_for_it(tmp_path):
    """As released, "more v" has no end, and each attempt is kept: a copy of the model each time."""
    spec = FWDLLM | {"var_threshold": 1e-12, "max_retries": 6}
    made = toy.quadratic([[5.0, 1.0]] * 2, spec, local={"gradient": CENTRAL, "lr": 0.01})
    done, sizes, moved = toy.federate(made, tmp_path, 0), [], []
    for number in range(1, 15):
        before = done.progress.w.clone()
        done.round(number)
        sizes.append(sum(v.numel() for v in done.progress.server.values()))
        moved.append(not torch.equal(done.progress.w, before))
    assert len(set(sizes)) == 1
    assert [i for i, m in enumerate(moved, 1) if m] == [7, 14]
    local = {"kind": "central", "directions": 3, "pacing": {"kind": "variance", "threshold": 1e-12, "cap": 11}}
    done = toy.federate(toy.quadratic([[5.0, 1.0]] * 2, local={"gradient": local}), tmp_path, 1)
    assert records(done)[1]["directions"] == 2 * 11


# --- FwdLLM: batches, weights, judging ---


@pytest.mark.parametrize("said", ["False", "false", "no", "0"])
def test_the_word_false_is_never_true(said, tmp_path):
    """As released, flags are `bool("False")`, which is True."""
    gradient = {"kind": "central", "directions": 2, "guidance": "top_cosine"}
    local = {"optimizer": "sgd", "lr": 0.1, "steps": 1, "gradient": gradient}
    for changes in ({"algorithm": {"name": "fwdllm", "var_control": said}, "local": local}, {"model__dropout": said}):
        with pytest.raises(ConfigError, match="is not true or false"):
            experiment(tmp_path, LANGUAGE, **changes)
    file = experiment_file(tmp_path, LANGUAGE, algorithm={"name": "fwdllm"}, local=local)
    if said.lower() == "false":  # on the command line there are no quotes, and it is false
        assert api.load(file, [f"algorithm.var_control={said}"]).algorithm["var_control"] is False


@pytest.mark.parametrize("name", ["fedavg", "fedsgd"])
def test_means_are_weighted_by_rows(name, tmp_path):
    """As released, FedAvg counts every client alike: here 1 and 9 rows, and a tenth of the way is the first one's."""
    made = toy.quadratic([[0.0], [10.0]], name, rows=[1, 9], local={"lr": 1.0, "batch_size": 9})
    torch.testing.assert_close(toy.vectors(made, tmp_path, 1), torch.tensor([9.0]))


@pytest.mark.parametrize("sizes", [[1, 5, 13], [13, 5, 1]])
def test_a_round_is_as_long_for_each_client_as_it_has_rows(sizes, tmp_path, monkeypatch):
    """As released, all cohort clients walk as many batches as the first has: others crash, or their rows are never seen."""
    seen, plan = {}, Trainer.member

    def member(self, partition, client, round, *more):
        found = plan(self, partition, client, round, *more)
        rows = [int(r) for step in found.steps for part in step for r in part]
        seen.setdefault(found.client, []).append((len(found.steps), sorted(rows), partition.rows(client).tolist()))
        return found

    monkeypatch.setattr(Trainer, "member", member)
    for spec, local in (("fedavg", {"epochs": 1}), (PLAIN, {"steps": 1})):
        seen.clear()
        made = wide(spec, sizes=sizes, local={"gradient": CENTRAL, "batch_size": 4, "lr": 0.01} | local)
        done = toy.federate(made, tmp_path, 6)
        assert [r["dropped"] for r in records(done)[1:]] == [0] * 6 and len(seen) == 3
        for rounds in seen.values():
            for steps, rows, own in rounds:
                if "epochs" in local:
                    assert steps == -(-len(own) // 4) and rows == own
                else:
                    assert steps == 1 and len(rows) == min(4, len(own)) and set(rows) <= set(own)
            assert len(rounds) == 6


@pytest.mark.parametrize("name", ["fedsgd", "fedavg", "fwdllm"])
def test_an_update_after_an_evaluation_counts(name, tmp_path):
    """As released, the first update after each evaluation goes to a copy of the parameters, and is lost."""
    spec, local = (PLAIN, {"gradient": CENTRAL}) if name == "fwdllm" else (name, {})
    never, always = (
        toy.vectors(toy.factors(spec, local=local | {"lr": 0.05}), tmp_path, 4, evaluation={"every": every})
        for every in (0, 1)
    )
    assert torch.equal(never, always)


def test_metrics_know_all_labels():
    """As released, a confusion count is limited to the labels 0 and 1, and raises when neither occurs."""
    task = Classification(None, None, ["a", "b", "c", "d"])
    rows = {"loss": np.ones(6), "label": np.array([2, 2, 2, 3, 3, 3]), "prediction": np.array([2, 2, 3, 3, 3, 3])}
    found = task.metrics(rows)
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["mcc"] == pytest.approx((2 * 3 - 0 * 1) / (2 * 4 * 3 * 3) ** 0.5)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 6 / 7) / 2)


def test_examples_keep_the_numbers_that_a_partition_names(tmp_path):
    """As released, a pool of threads appends examples in the order in which they are read."""
    pytest.importorskip("h5py")
    from fedloom.data.fednlp import fednlp_rows, write_data

    write_data(tmp_path / "data.h5", [{"text": f"text {i}", "label": f"l{i % 2}"} for i in range(300)])
    for _ in range(2):
        assert [(row.index, row.values["text"]) for row in fednlp_rows(tmp_path / "data.h5")] == [
            (i, f"text {i}") for i in range(300)
        ]
