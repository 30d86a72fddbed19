"""Asynchronous federations: old versions kept and given back, resumption after every one, failures, what is recorded."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from project import CLASSIFY, LANGUAGE, experiment

from fedloom import api
from fedloom.data.partition import Partition
from fedloom.errors import ConfigError, RunError, UsageError
from fedloom.federation import Federation
from fedloom.tracking.checkpoint import CheckpointFolder, Progress
from fedloom.tracking.rundir import RunDir

BUFF = {"name": "fedbuff", "buffer": 2}
METHODS = {
    "buffer": BUFF,
    "one by one": {"name": "fedasync"},
    "clients keep their own": BUFF | {"with": [{"name": "fedper"}]},
    "clients keep momentum": BUFF,
    "server keeps momentum": BUFF | {"with": [{"name": "fedadam"}]},
    "something beside the vector": BUFF | {"with": [{"name": "scaffold"}]},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)


def prepared(name, **sections):
    keep = {"optimizer_state": "keep", "momentum": 0.9} if name == "clients keep momentum" else {}
    local = {"steps": 2, "batch_size": 4} | keep
    federation = {"clients_per_round": 4, "schedule": {"kind": "linear"}, "rounds": 9}
    return toy.factors(METHODS[name], clients=6, local=local, federation=federation, **sections)


def records(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in lines]


def states(federation):
    """What every client keeps in the end."""
    clients = federation.prepared.train.clients
    return [federation.store.load(client, federation.progress.round + 1) or {} for client in clients]


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


def resume(path, made, rounds):
    federation = Federation(made, RunDir.open(path))
    federation.progress = federation._begin()
    begun = federation.progress.round
    while federation.progress.round < rounds:
        federation.round(federation.progress.round + 1)
    federation.run_dir.close()
    return federation, begun


@pytest.mark.parametrize("name", METHODS)
def test_resumed_after_every_version(name, tmp_path):
    """Killed just after any version, whatever was written since: the same vector, records, clients and history."""
    made = prepared(name, checkpoints={"keep_every": 1})
    whole = toy.federate(made, tmp_path, 9)
    late = [len(p.history) for p in map(whole.checkpoints.load, range(10))]
    assert max(late) > 1, "versions older than the last are needed somewhere"
    assert max(r.get("staleness", 0) for r in records(whole.run_dir.path)) > 0
    for cut in range(9):
        copy = tmp_path / f"cut{cut}"
        shutil.copytree(whole.run_dir.path, copy)
        for later in range(cut + 1, 10):
            shutil.rmtree(copy / "checkpoints" / f"round-{later:06d}")
        again, begun = resume(copy, prepared(name, checkpoints={"keep_every": 1}), 9)
        assert begun == cut and torch.equal(again.progress.w, whole.progress.w)
        assert same([again.progress.server], [whole.progress.server]) and same(states(again), states(whole))
        assert again.progress.history.keys() == whole.progress.history.keys()
        assert same([*again.progress.history.values()], [*whole.progress.history.values()])
        assert records(copy) == records(whole.run_dir.path)


def test_resumed_with_only_the_newest_checkpoint(tmp_path):
    """Clients' states that a stale client still needs are not deleted with the checkpoints of their time."""
    name, keep = "clients keep their own", {"keep_last": 1, "keep_best": False}
    whole = toy.federate(prepared(name, checkpoints=keep), tmp_path / "whole", 9)
    path = toy.federate(prepared(name, checkpoints=keep), tmp_path / "cut", 0).run_dir.path
    for rounds in range(1, 10):
        again, begun = resume(path, prepared(name, checkpoints=keep), rounds)
        assert begun == rounds - 1
    assert torch.equal(again.progress.w, whole.progress.w) and same(states(again), states(whole))


def test_only_versions_still_needed_are_kept(tmp_path):
    made = prepared("buffer")
    federation = toy.federate(made, tmp_path, 0)
    vectors = {0: federation.progress.w}
    federation.run_dir = RunDir.open(federation.run_dir.path)
    for number in range(1, 10):
        federation.round(number)
        vectors[number], history = federation.progress.w, federation.progress.history
        assert history.keys() == federation.schedule.round(number).needed and len(history) <= 4
        assert all(torch.equal(sent["w"], vectors[version]) for version, sent in history.items())
    federation.run_dir.close()
    plain = toy.federate(toy.factors("fedavg"), tmp_path / "plain", 2)
    assert plain.progress.history == {} and "staleness" not in records(plain.run_dir.path)[-1]


def test_a_client_trains_from_the_version_it_started_from(tmp_path):
    """Clients work on their own optimum for a whole step: lr 1 makes w_k = c_k, so Delta_k = c_k - w_started, by hand.

    Three clients of one second, buffer 2, no discount: w1 = (1 + 3) / 2 = 2 from w0 = 0; then client 2, from w0, with
    client 0, from w1: w2 = 2 + ((8 - 0) + (1 - 2)) / 2 = 5.5; then client 1, from w1, with client 0, from w2:
    w3 = 5.5 + ((3 - 2) + (1 - 5.5)) / 2 = 3.75. Half the learning rate for those asked in the second of two rounds:
    client 0 of w2 moves by -1/2 instead: w2 = 2 + (8 - 1/2) / 2 = 5.75.
    """
    spec, federation = BUFF | {"exponent": 0.0}, {"arrivals": {"kind": "constant"}}
    made = toy.quadratic([[1.0], [3.0], [8.0]], spec, local={"lr": 1.0}, federation=federation)
    assert [toy.vectors(made, tmp_path, r).item() for r in (1, 2, 3)] == pytest.approx([2.0, 5.5, 3.75])
    halved = federation | {"rounds": 2, "schedule": {"kind": "linear", "final": 0.5}}
    made = toy.quadratic([[1.0], [3.0], [8.0]], spec, local={"lr": 1.0}, federation=halved)
    assert toy.vectors(made, tmp_path, 2).item() == pytest.approx(5.75)


def test_what_clients_are_asked(tmp_path):
    """Work is keyed by the round in which it was asked for, whichever round the update joins; late updates are discounted."""
    made = toy.quadratic([[1.0], [3.0], [8.0]], BUFF, federation={"arrivals": {"kind": "constant"}})
    federation = toy.federate(made, tmp_path, 0)
    federation.run_dir, run, asked = RunDir.open(federation.run_dir.path), federation.engine.run, []

    def recorded(work, groups):
        asked.append((work.round, work.arrives, work.discount, [client for group in groups for client in group]))
        return run(work, groups)

    federation.engine.run = recorded
    for number in (1, 2, 3):
        federation.round(number)
    federation.run_dir.close()
    assert asked == [
        (1, 1, 1.0, [0, 1]),
        (1, 2, 2**-0.5, [2]), (2, 2, 1.0, [0]),
        (2, 3, 2**-0.5, [1]), (3, 3, 1.0, [0]),
    ]  # fmt: skip


def test_what_is_recorded(tmp_path):
    made = toy.quadratic([[1.0], [3.0], [8.0]], BUFF, federation={"arrivals": {"kind": "constant", "seconds": 2.5}})
    federation = toy.federate(made, tmp_path, 3)
    rounds = records(federation.run_dir.path)[1:]
    assert [r["staleness"] for r in rounds] == [0.0, 0.5, 0.5]
    assert [r["virtual_seconds"] for r in rounds] == [2.5, 5.0, 7.5]
    assert [r["clients"] for r in rounds] == [2, 2, 2]
    plain = records(toy.federate(toy.quadratic([[1.0], [3.0]]), tmp_path, 1).run_dir.path)[1]
    assert [r["bytes_down"] for r in rounds] == [plain["bytes_down"]] * 3, "two messages a round, old version or new"
    assert rounds[0]["bytes_up"] == plain["bytes_up"]


def test_grouping_and_the_wire_change_nothing(tmp_path):
    made = prepared("something beside the vector")
    plain = toy.vectors(made, tmp_path, 6)
    assert torch.equal(toy.vectors(prepared("something beside the vector", engine={"wire": True}), tmp_path, 6), plain)
    grouped = toy.vectors(made, tmp_path, 6, local={"grouping": "grouped"}, engine={"group_size": 2})
    torch.testing.assert_close(grouped, plain, rtol=0, atol=1e-5)


NAN = float("nan")


def unjudged(made):
    """Without rows to judge on: those of a client that fails are not finite."""
    nobody = Partition(made.train.clients, np.zeros(len(made.train) + 1, np.int64), np.arange(0))
    return replace(made, held_out=np.arange(0), validation=nobody)


def test_a_failed_update_arrives_with_nothing(tmp_path):
    """Client 1 fails: a version without any update is the one before; in a buffer, the others are re-weighted.

    One by one: 0.6 * 0.1 = 0.06; then nothing; then client 2, two versions late and started from 0:
    alpha = 0.6 / sqrt(3) = 0.346410, w3 = 0.653590 * 0.06 + 0.346410 * 0.2 = 0.108497.
    """
    settings = {"arrivals": {"kind": "constant"}, "on_failure": "drop"}
    made = toy.quadratic([[1.0], [NAN], [2.0]], {"name": "fedasync"}, federation=settings)
    made = unjudged(made)
    federation = toy.federate(made, tmp_path, 3)
    rounds = records(federation.run_dir.path)[1:]
    assert [(r["clients"], r["dropped"], "train_loss" in r) for r in rounds] == [
        (1, 0, True),
        (0, 1, False),
        (1, 0, True),
    ]
    assert [toy.vectors(made, tmp_path, r).item() for r in (1, 2, 3)] == pytest.approx([0.06, 0.06, 0.108497], abs=1e-6)
    buffered = toy.quadratic([[1.0], [NAN], [2.0]], BUFF, federation=settings)
    assert toy.vectors(unjudged(buffered), tmp_path, 1).item() == pytest.approx(0.1)


def test_when_all_that_are_under_way_fail_it_stops(tmp_path):
    settings = {"arrivals": {"kind": "constant"}, "on_failure": "drop"}
    made = toy.quadratic([[NAN]] * 3, {"name": "fedasync"}, federation=settings)
    with pytest.raises(RunError, match="the last 3 clients failed"):
        toy.federate(unjudged(made), tmp_path, 9)
    stopped = toy.federate(unjudged(made), tmp_path / "stopped", 2)
    with pytest.raises(RunError, match="the last 3 clients failed"):
        resume(stopped.run_dir.path, unjudged(made), 3)
    made = toy.quadratic([[NAN]] * 3, BUFF | {"buffer": 3}, federation=settings)
    with pytest.raises(RunError, match="every client of round 1 failed"):
        toy.federate(unjudged(made), tmp_path, 9)


def test_the_history_comes_back_from_a_checkpoint(tmp_path):
    shared = torch.randn(4)  # versions may share tensors, with each other and with the server's state
    history = {3: {"w": shared, "c.x": torch.ones(2)}, 11: {"w": shared}}
    folder = CheckpointFolder(tmp_path / "c", experiment(tmp_path / "mine", LANGUAGE).checkpoints)
    folder.save(Progress(12, torch.randn(4), {"m": shared}, history, missed=2))
    loaded = folder.load(12)
    assert loaded.missed == 2 and loaded.server.keys() == {"m"} and loaded.history.keys() == {3, 11}
    assert same([loaded.history[version] for version in history], [*history.values()])


@pytest.mark.parametrize("algorithm", [BUFF, "fedasync"])
def test_a_whole_run(algorithm, tmp_path):
    """From YAML: it learns, is stopped and resumed to the same bytes, and its yardsticks see as many examples."""
    changes = {"algorithm": algorithm, "federation": {"rounds": 16, "yardsticks": ["central"], "clients_per_round": 3}}
    loaded = experiment(tmp_path / "mine", CLASSIFY, **changes)
    alone = api.run(loaded, tmp_path / "runs")
    assert alone.finished and alone.manifest["after"]["eval_loss"] < alone.manifest["before"]["eval_loss"]
    asked = {"rounds": 0}

    def stop() -> bool:
        asked["rounds"] += 1
        return asked["rounds"] % 6 == 0

    stopped = api.run(loaded, tmp_path / "runs", stop_asked=stop)
    while not stopped.finished:
        stopped = api.resume(stopped.path, stop_asked=stop)
    assert alone.manifest["adapter_sha256"] == stopped.manifest["adapter_sha256"]
    assert records(alone.path) == records(stopped.path)
    assert records(alone.path)[-1]["virtual_seconds"] > 0
    tokens = [sum(r.get("tokens", 0) for r in records(p)) for p in (alone.path, alone.path / "yardsticks/central")]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.1)


def test_early_stopping(tmp_path):
    changes = {"federation": {"rounds": 40, "early_stopping": {"patience": 2}}, "local__lr": 3.0}
    run = api.run(experiment(tmp_path / "mine", CLASSIFY, algorithm=BUFF, **changes), tmp_path / "runs")
    assert run.finished and records(run.path)[-1]["round"] < 40


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"algorithm": "fedavg", "federation__arrivals": "constant"}, "federation.arrivals", "waits for all"),
        ({"algorithm": BUFF | {"buffer": 3}, "federation__clients_per_round": 2}, "algorithm.buffer", "only 2 clients"),
        ({"algorithm": BUFF | {"buffer": 0}}, "algorithm.buffer", "of at least 1"),
        ({"algorithm": BUFF | {"with": "fedasync"}}, "algorithm.with", "both decide the order of arrival"),
    ],
)
def test_what_cannot_be_is_refused(changes, key, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        experiment(tmp_path / "mine", LANGUAGE, **changes)
    assert [m.key for m in caught.value.mistakes] == [key] and words in str(caught.value)


def test_a_buffer_beyond_the_clients_of_the_data_is_refused(tmp_path):
    loaded = experiment(
        tmp_path / "mine", LANGUAGE, algorithm=BUFF | {"buffer": 9}
    )  # 4 topics, which only the data says
    with pytest.raises(UsageError, match="waits for 9 updates, and only 4 clients"):
        api.run(loaded, tmp_path / "runs")
