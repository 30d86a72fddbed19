"""`engine: remote` over a link in memory: the same bytes as a local run, and what cannot be had."""

from __future__ import annotations

import json

import numpy as np
import pytest
from memory_link import Broker, CoordinatorLink
from remote_toy import (
    FEW,
    FORWARD,
    ONLY,
    REMOTE,
    engine,
    local_run,
    same,
    settings_of,
)

from fedloom import api
from fedloom.algorithms import ALGORITHMS
from fedloom.engines.remote.standin import StandIn, prepare_again, prepare_remote
from fedloom.errors import ConfigError, RunError, UsageError
from fedloom.local.batches import steps_of
from fedloom.local.prepare import prepare_data

FAST = {"fedavg"}

NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in ALGORITHMS
    if name not in ("central", "fedgpl")
]
PRIORITY = 'layers={"kind": "priority", "top": 1, "bottom": 0, "seen_by": "clients"}'
MIXED = {
    "a sample of clients by tokens, an epoch each": (
        "federation.clients_per_round=3", "federation.weighting=tokens", "local.steps=null", "local.epochs=1",
        "federation.rounds=3",
    ),
    "a validation split of its own": ("data.validation=0.3",),
    "derivatives alone": (FORWARD,),
    "derivatives and scores": (FORWARD, PRIORITY),
    "layers by the clients' scores": (PRIORITY, "federation.rounds=3"),
    "layers shared out": ('layers={"kind": "split"}',),
    "an algorithm's own layers": ("algorithm={name: fedgpl, train_mode: fed}",),
    "ranks that differ": ("algorithm=flora", "adapter.ranks=[2, 4]"),
    "optimizers that go on": ("local.optimizer=adamw", "local.optimizer_state=keep", "local.lr=0.01"),
    "personal layers and a server's momentum": ("algorithm={name: fedsa_lora, with: fedavgm}",),
    "small groups": ("engine.group_size=3",),
    "directions guided by the last update": (
        'local.gradient={"kind": "jvp", "directions": 2, "guidance": "complement"}', "federation.rounds=3",
    ),
}  # fmt: skip
QUICK = {"a validation split of its own"}


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_ends_in_the_same_bytes(name, toy, remote, tmp_path):
    rounds = 4 if name in ("fedbuff", "fedasync") else 2
    overrides = [*settings_of(name, toy.parent), "local.grouping=in_place", f"federation.rounds={rounds}"]
    manifest, w = local_run(toy, [ONLY, *overrides], tmp_path / "local")
    remote.go(api.load(toy, [*overrides, REMOTE]))
    assert same(remote.w, w)
    assert remote.manifest.get("adapter_sha256") == manifest.get("adapter_sha256")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in MIXED])
def test_every_setting_ends_in_the_same_bytes(case, toy, everyone, tmp_path):
    overrides = list(MIXED[case])
    manifest, w = local_run(toy, overrides, tmp_path / "local")
    asked = [o.replace("engine.group_size=3", engine(group_size=3)) for o in overrides]
    everyone.go(api.load(toy, asked if any("remote" in o for o in asked) else [REMOTE, *asked]))
    assert same(everyone.w, w)
    assert everyone.manifest["adapter_sha256"] == manifest["adapter_sha256"]


@pytest.mark.slow
def test_the_records_are_those_of_a_local_run(toy, remote, tmp_path):
    """Bytes, tokens, losses, weights: all but the time, and what is judged."""
    run = api.run(api.load(toy, [ONLY]), tmp_path / "local")
    remote.go(api.load(toy, [REMOTE]))
    read = lambda name: [json.loads(line) for line in (run.path / f"{name}.jsonl").read_text().splitlines()]  # noqa: E731
    for mine, theirs in zip(remote.records(), read("metrics"), strict=True):
        kept = theirs.keys() - {"seconds", "peak_memory_bytes"}
        assert {k: mine[k] for k in kept} == {k: theirs[k] for k in kept}
    mine, theirs = remote.records("clients"), read("clients")
    assert [r for r in mine if "status" in r] == [r for r in theirs if "status" in r]
    judged = {(r["round"], r["client"]): r for r in theirs if "status" not in r}
    assert len(judged) == 2 * len(FEW)
    for record in (r for r in mine if "status" not in r):
        other = judged[record["round"], record["client"]]
        assert record["rows"] == other["rows"] and record.keys() == other.keys()
        assert record["eval_loss"] == pytest.approx(other["eval_loss"], abs=1e-5)


def test_what_is_judged_is_the_mean_over_rows(toy, remote):
    remote.go(api.load(toy, [REMOTE]))
    last, own = remote.records()[-1], [r for r in remote.records("clients") if r.get("evaluated") and r["round"] == 2]
    rows = np.array([r["rows"] for r in own])
    assert len(set(rows)) > 1
    for name in ("eval_loss", "eval_accuracy", "eval_macro_f1"):
        values = np.array([r[name] for r in own])
        assert last[name] == pytest.approx(float((rows * values).sum() / rows.sum()), abs=1e-12)
        assert values.std() > 0


def test_the_vector_is_stored_and_fetched_once_a_round(toy, remote):
    """Whether it is judged or trained on, and whoever asks; and one update at a time is fetched, never a larger one."""
    remote.go(api.load(toy, [REMOTE]))
    down = [key for key in remote.broker.puts if key.startswith("run-1.")]
    assert len(set(down)) == 4  # the experiment, and versions 0, 1 and 2
    assert {line["kind"]: line["bytes_received"] > 0 for line in remote.lines["north"] if line["round"] == 1} == {
        "train": False, "evaluate": True,
    }  # fmt: skip
    sizes = {size for _, size in remote.broker.fetched}
    assert len(remote.broker.fetched) == 8 and len(sizes) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.held_out=0.1"], "data.held_out: 0"),
        (["data.unseen_clients=0.2"], "data.unseen_clients"),
        (["data.partition={kind: iid, clients: 8}"], "kind: column"),
        (["data.partition={kind: column, column: site, clients: 4}"], "kind: column"),
        (["data.labels={}"], "data.labels"),
        (["federation.weighting={kind: episodes, column: site}"], "samples, tokens, steps or uniform"),
        (["federation.weighting=sites:weigh"], "samples, tokens, steps or uniform"),
        (["federation.yardsticks=[local]"], "federation.yardsticks"),
        (["algorithm=central"], "federated algorithm"),
        (["local.grouping=grouped"], "in_place"),
        (["data.held_out=0.2", 'layers={"kind": "priority", "seen_by": "held_out"}'], "seen_by: clients"),
        (["data.held_out=0.2", "algorithm=fedgpl"], "no rows of its own to score layers"),
    ],
)
def test_what_needs_rows_is_refused_in_the_file(overrides, said, toy):
    with pytest.raises(ConfigError, match=said):
        api.load(toy, [REMOTE, *overrides])


def test_all_that_is_refused_is_said_at_once(toy):
    toy.write_text(toy.read_text().replace("held_out: 0", "unseen_clients: 0.2"))  # the default share is held out
    with pytest.raises(ConfigError) as caught:
        api.load(toy, [REMOTE])
    assert "Set data.held_out: 0;" in str(caught.value) and "data.unseen_clients" in str(caught.value)


def test_the_first_rows_of_all_are_refused_before_anyone_is_asked(toy):
    broker = Broker()
    with pytest.raises(UsageError, match=r"data\.limit"):
        prepare_remote(api.load(toy, [REMOTE, "data.limit=100"]), CoordinatorLink(broker), "run-1", FEW)
    assert not broker.puts and not broker.waiting


def test_nobody_online_is_an_error_in_a_bounded_time(toy):
    with pytest.raises(
        RunError, match=r"no client is online, after 0\.05 seconds; the federation has 4: .*fedloom join"
    ):
        prepare_remote(api.load(toy, [engine(round_deadline=1)]), CoordinatorLink(Broker()), "run-1", FEW)


def test_the_standin_gives_what_a_local_run_gives(toy, remote):
    experiment = api.load(toy, [REMOTE, "federation.weighting=tokens"])
    _, prepared = remote.prepare(experiment)
    here = prepare_data(api.load(toy, [ONLY]))
    assert list(prepared.train.clients) == list(here.train.clients)
    for k in range(len(FEW)):
        rows, own = here.train.rows(k), prepared.train.rows(k)
        assert len(own) == len(rows) and len(prepared.validation.rows(k)) == len(here.validation.rows(k))
        assert prepared.table.lengths[own].sum() == here.table.lengths[rows].sum()
        assert steps_of(len(own), experiment.local) == steps_of(len(rows), experiment.local)
    assert isinstance(prepared.table, StandIn) and len(prepared.table) == len(here.table)
    again = prepare_again(experiment, json.loads(json.dumps(prepared.record)))
    assert again.table.digest == prepared.table.digest and again.train.digest == prepared.train.digest
    assert again.base == prepared.base and again.run == "run-1"
