"""Every algorithm ends with the same bytes wherever its groups run: the server's vector and state, clients' states, records."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import kept
import pytest
import torch

from fedloom import api
from fedloom.algorithms import ALGORITHMS, resolve
from fedloom.config.engine import LocalEngine
from fedloom.engines.pool import PoolEngine
from fedloom.federation import Federation
from fedloom.tracking.rundir import RunDir

TOY = Path(__file__).parents[3] / "examples" / "toy" / "experiment.yaml"
COMMON = {"threads": 1, "device": "cpu", "group_size": 3}
ALONE = LocalEngine(**COMMON)
ELSEWHERE = {"workers": LocalEngine(workers=2, **COMMON), "killed": LocalEngine(workers=2, wire=True, **COMMON)}
FAST = ("fedavg",)
SEEDS = {"local.gradient": {"kind": "central", "directions": 2, "upload": "seeds"}}
OTHERS = {
    "asynchronous, with states": {"algorithm": {"name": "fedbuff", "buffer": 2, "with": [{"name": "fedper"}]}},
    "random layers": {"layers": {"kind": "random", "count": 1}},
    "layers that clients score": {"layers": {"kind": "priority", "top": 1, "bottom": 0}},
    "layers that the server scores": {"layers": {"kind": "priority", "top": 1, "bottom": 0, "seen_by": "held_out"}},
    "clients' own layers": {"layers": {"kind": "split"}},
    "seeds": SEEDS,
    "an optimizer that is kept": {"local.optimizer": "adamw", "local.lr": 0.01, "local.optimizer_state": "keep"},
    "in place": {"local.grouping": "in_place"},
    "ranks of their own": {"algorithm": "hetlora", "adapter.ranks": [2, 4]},
}


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """A cache of its own, one template for all pools."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    kept.keep(monkeypatch)


def of_toy(changes):
    settings = {"federation.rounds": 2, "checkpoints.keep_last": 9} | changes
    loaded = api.load(TOY, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    return api.prepare(loaded)


def outcome(prepared, engine, path):
    """All that a run leaves, but for what is measured of its process."""
    experiment = prepared.experiment.model_copy(update={"engine": engine})
    run_dir = RunDir.create(path, "", {})
    federation = Federation(replace(prepared, experiment=experiment), run_dir)
    try:
        assert federation.run()
    finally:
        federation.engine.close()
        run_dir.close()
    progress, found = federation.progress, {}
    for name in ("metrics", "clients", "layers"):
        lines = (
            (run_dir.path / f"{name}.jsonl").read_text().splitlines()
            if (run_dir.path / f"{name}.jsonl").exists()
            else []
        )
        records = [json.loads(line) for line in lines]
        found[name] = [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in records]
    folder = run_dir.path / "clients"
    found["states"] = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found["server"] = {name: value.numpy().tobytes() for name, value in progress.server.items()}
    return progress.w, found


def check(changes, engines, tmp_path):
    prepared = of_toy(changes)
    w, rest = outcome(prepared, ALONE, tmp_path / "alone")
    moved = not torch.equal(w, prepared.initial) or rest["states"]
    assert moved and len(rest["metrics"]) == 3, "nothing was learnt, so nothing is compared"
    for engine, options in engines.items():
        other_w, other_rest = outcome(prepared, options, tmp_path / engine)
        assert torch.equal(w, other_w), engine
        for name, value in rest.items():
            assert value == other_rest[name], (engine, name)


def signature(name):
    return {"algorithm": name} | dict(resolve(name, TOY.parent).signature) | {"federation.rounds": 2}


@pytest.fixture
def killed(monkeypatch):
    """Of the workers that train a round's first groups, one is killed, where messages are encoded; how many were."""
    taken, dead = PoolEngine._take, []

    def take(self, jobs):
        round = jobs.work.round
        if self._prepared.experiment.engine.wire and (not dead or dead[-1] != round):
            os.kill(next(w.pid for w in self._workers if w and w.group is not None), signal.SIGKILL)
            dead.append(round)
        taken(self, jobs)

    monkeypatch.setattr(PoolEngine, "_take", take)
    return dead


@pytest.mark.parametrize("name", FAST)
def test_an_algorithm_on_two_workers(name, tmp_path):
    check(signature(name), {"workers": ELSEWHERE["workers"]}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_on_two_workers_that_may_die(name, tmp_path, killed):
    check(signature(name), ELSEWHERE, tmp_path)
    assert killed


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_whatever_else_a_round_can_be(name, tmp_path, killed):
    check(OTHERS[name], ELSEWHERE, tmp_path)
    assert killed
