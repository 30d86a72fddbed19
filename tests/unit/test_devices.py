"""Federations on a virtual clock: the same bytes where nobody is late, nothing lost, and the same after every stop."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import toy

from fedloom.devices.make import make_population
from fedloom.errors import RunError
from fedloom.federation import Federation
from fedloom.tracking.rundir import RunDir

ALIKE = {"kind": "alike"}
PHONES = {"kind": "generated", "correlation": 0.5, "cost": 200.0}
OORT = {"name": "oort"}


def prepared(spec="fedavg", devices=ALIKE, clients=12, **federation):
    made = toy.factors(
        spec, clients=clients, local={"steps": 3, "batch_size": 4},
        federation={"clients_per_round": 4, "rounds": 9, **federation}, devices=devices,
    )  # fmt: skip
    return replace(made, sample_losses=True)


def rounds(federation):
    lines = [json.loads(line) for line in (federation.run_dir.path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in lines][1:]


def clients(federation):
    lines = (federation.run_dir.path / "clients.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "status" in record]


@pytest.mark.parametrize(
    "wait", [None, {"kind": "all"}, {"kind": "overcommit", "factor": 1.0}, {"kind": "quorum", "updates": 4}]
)
@pytest.mark.parametrize("spec", ["fedavg", "scaffold", "fedyogi"])
def test_devices_that_are_always_there_change_nothing(spec, wait, tmp_path):
    plain = toy.federate(prepared(spec, devices=None), tmp_path / "plain", 5)
    timed = toy.federate(prepared(spec, wait=wait), tmp_path / "timed", 5)
    assert torch.equal(plain.progress.w, timed.progress.w)
    assert [r["virtual_seconds"] for r in rounds(plain)] == [None] * 5
    clock = [r["virtual_seconds"] for r in rounds(timed)]
    assert clock == sorted(clock) and clock[0] > 0
    assert np.allclose(np.diff(clock), clock[0])  # equal devices, equal work


def test_the_clock_by_hand(tmp_path):
    """Each client takes 3 steps of 4 rows, three passes each: 36 passes of 100 ms, and its messages at 8 kbps both ways."""
    devices = {"kind": "alike", "ms_per_sample": 100.0, "down_kbps": 8.0, "up_kbps": 8.0}
    federation = toy.federate(prepared(devices=devices), tmp_path, 1)
    (record,) = rounds(federation)
    down, up = record["bytes_down"] / 4, record["bytes_up"] / 4
    assert record["virtual_seconds"] == pytest.approx(36 * 0.1 + (down + up) / 1000, rel=0.01)
    assert record["asked"] == record["clients"] == 4 and record["offline"] == record["late"] == 0
    assert record["device_seconds"] == pytest.approx(4 * record["virtual_seconds"], rel=1e-3)


@pytest.mark.parametrize(
    "wait",
    [
        {"kind": "all"},
        {"kind": "overcommit", "factor": 2.0},
        {"kind": "deadline", "seconds": 9000.0},
        {"kind": "quorum", "updates": 2},
    ],
)
def test_every_second_and_byte_is_useful_or_wasted(wait, tmp_path):
    federation = toy.federate(
        prepared(devices=PHONES | {"cost": 3000.0}, selection=OORT, wait=wait, clients_per_round=5), tmp_path, 8
    )
    seen = {"arrived": 0, "late": 0, "offline": 0}
    before = 0.0
    for record in rounds(federation):
        own = [c for c in clients(federation) if c["round"] == record["round"]]
        ok = [c for c in own if c["status"] == "ok"]
        gone = [c for c in own if c["status"] != "ok"]
        assert record["asked"] == len(own) and record["clients"] == len(ok)
        for status in ("late", "offline"):
            assert record[status] == sum(c["status"] == status for c in own)
            seen[status] += record[status]
        seen["arrived"] += len(ok)
        assert record["device_seconds"] == pytest.approx(sum(c["virtual_seconds"] for c in ok), abs=0.01)
        assert record["wasted_seconds"] == pytest.approx(sum(c["virtual_seconds"] for c in gone), abs=0.01)
        assert record["wasted_bytes_down"] == sum(c["bytes_down"] for c in gone)
        assert record["wasted_bytes_up"] == sum(c["bytes_up"] for c in gone)
        ends = [c["virtual_began"] + c["virtual_seconds"] for c in own]
        assert max(ends) <= record["virtual_seconds"] + 0.01 and min(c["virtual_began"] for c in own) >= before - 0.01
        before = record["virtual_seconds"]
    assert seen["arrived"] and (seen["late"] or seen["offline"])


def test_nothing_is_trained_in_vain(tmp_path, monkeypatch):
    trained = []
    federation = prepared(devices=PHONES, wait={"kind": "overcommit", "factor": 2.0})
    from fedloom.engines import group

    run = group.train_group
    monkeypatch.setattr(group, "train_group", lambda p, s, t, w, own: (trained.extend(own), run(p, s, t, w, own))[1])
    made = toy.federate(federation, tmp_path, 6)
    assert len(trained) == sum(r["clients"] for r in rounds(made)) < sum(r["asked"] for r in rounds(made))


SELECTIONS = {
    "oort": OORT,
    "refl": {"name": "refl"},
    "pyramidfl": {"name": "pyramidfl"},
    "round_robin": {"name": "round_robin"},
    "power_of_choice": {"name": "power_of_choice", "candidates": 6},
    "uniform": {"name": "uniform"},
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_stopped_after_every_round_and_resumed_it_is_the_same(name, tmp_path):
    made = prepared(devices=PHONES, selection=SELECTIONS[name], wait={"kind": "overcommit", "factor": 1.5})
    whole = toy.federate(made, tmp_path / "whole", 6)
    folder = tmp_path / "broken"
    RunDir.create(folder, "", {}).close()
    for number in range(1, 7):
        federation = Federation(made, RunDir.open(folder))
        federation.progress = federation._begin()
        federation.round(number)
        federation.run_dir.close()
    assert torch.equal(whole.progress.w, federation.progress.w)
    assert rounds(whole) == rounds(federation)
    assert clients(whole) == clients(federation)


@pytest.mark.parametrize("spec", [{"name": "fedbuff", "buffer": 3}, {"name": "fedasync"}])
def test_asynchronous_algorithms_run_on_the_clock(spec, tmp_path):
    made = prepared(spec, devices=PHONES | {"cost": 3000.0}, clients_per_round=6)
    whole = toy.federate(made, tmp_path / "whole", 12)
    own, records = clients(whole), rounds(whole)
    assert sum(r["offline"] for r in records) > 0  # some are lost, for the work takes hours
    assert all(r["clients"] == made.algorithm.awaits() for r in records)
    clock = [r["virtual_seconds"] for r in records]
    assert clock == sorted(clock)
    flights = sorted((c["virtual_began"], c["virtual_began"] + c["virtual_seconds"], c["client"]) for c in own)
    for client in {c["client"] for c in own}:
        spans = [(a, b) for a, b, name in flights if name == client]
        assert all(later[0] >= earlier[1] - 0.01 for earlier, later in pairwise(spans))
    edges = sorted([(a, 1) for a, *_ in flights] + [(b - 0.01, -1) for _, b, _ in flights], key=lambda e: (e[0], e[1]))
    assert max(np.cumsum([step for _, step in edges])) <= 6
    folder = tmp_path / "resumed"
    shutil.copytree(toy.federate(made, tmp_path / "first", 5).run_dir.path, folder)
    federation = Federation(made, RunDir.open(folder))
    federation.progress = federation._begin()
    for number in range(6, 13):
        federation.round(number)
    assert torch.equal(whole.progress.w, federation.progress.w) and rounds(federation) == records
    federation.run_dir.close()


def test_the_clock_waits_for_somebody_to_come(tmp_path):
    """Every client is asked alone when all the others are gone: rounds begin when a device comes online."""
    made = prepared(devices={"kind": "generated", "days": 1}, clients=4, clients_per_round=2)
    federation = toy.federate(made, tmp_path, 30)
    population = make_population(made.experiment.devices, made.train.sizes, seed=0, base=made.experiment.base)
    for record in clients(federation):
        place = np.array([int(record["client"][1:])])
        if record["virtual_seconds"]:
            assert population.availability.until(place, record["virtual_began"] + 0.001)[0] > record["virtual_began"]


def test_nobody_ever_comes(tmp_path, monkeypatch):
    from fedloom.devices import generate

    monkeypatch.setattr(generate, "_NEVER", 1.0)
    with pytest.raises(RunError, match=r"from the virtual second 0 on\. The clock looked until 604,800"):
        toy.federate(prepared(devices=PHONES), tmp_path, 1)


def test_nobody_can_finish(tmp_path):
    made = prepared(wait={"kind": "deadline", "seconds": 0.001})
    with pytest.raises(RunError, match="in 10 rounds in a row, the last of them round 10, no client could finish"):
        toy.federate(made, tmp_path, 20)


def test_fast_clients_take_more_steps(tmp_path):
    """With PyramidFL those that would be done early train for longer, on the clock and in fact, and end no later than T."""
    made = prepared(devices=PHONES | {"always_online": True}, selection={"name": "pyramidfl", "preferred": 100.0})
    federation = toy.federate(made, tmp_path, 6)
    own = [c for c in clients(federation) if c["status"] == "ok"]
    assert {c["steps"] // 3 for c in own} > {1} and all(c["steps"] % 3 == 0 for c in own)
    assert all(c["samples"] == 4 * c["steps"] for c in own)
    population = make_population(made.experiment.devices, made.train.sizes, seed=0, base=made.experiment.base)
    for record in own:
        speed = 200 * population.ms_per_sample[int(record["client"][1:])] / 1000
        assert record["virtual_seconds"] == pytest.approx(speed * 3 * record["samples"], rel=0.05)


def test_an_empty_round_leaves_the_model_alone(tmp_path):
    made = prepared(wait={"kind": "deadline", "seconds": 0.001})
    federation = toy.federate(made, tmp_path, 3)
    assert torch.equal(federation.progress.w, made.initial)
    assert [(r["clients"], r["late"]) for r in rounds(federation)] == [(0, 4)] * 3
