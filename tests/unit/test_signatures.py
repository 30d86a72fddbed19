"""Every algorithm of the index trains on the toy example from YAML alone, with the settings its own file names."""

import json
import math
from pathlib import Path

import pytest
import torch

from fedloom import api
from fedloom.algorithms import ALGORITHMS, resolve
from fedloom.local.store import ClientStore

TOY = Path(__file__).parents[2] / "examples" / "toy" / "experiment.yaml"


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """No report page, and a cache of its own."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_trains_on_the_toy_with_its_signature(name, tmp_path):
    overrides = [f"algorithm={name}"]
    overrides += [f"{key}={json.dumps(value)}" for key, value in resolve(name, TOY.parent).signature.items()]
    loaded = api.load(TOY, [*overrides, "federation.rounds=2", "checkpoints.keep_last=9"])
    run = api.run(loaded, tmp_path)
    assert run.finished and run.manifest["rounds_done"] == 2

    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["train_loss"] for record in records if record["round"] > 0]
    assert len(losses) == 2 and all(map(math.isfinite, losses))

    last = api.open_run(run.path).progress.w
    assert torch.isfinite(last).all()
    moved = not torch.equal(last, api.open_run(run.path, 0).progress.w)
    assert moved or clients_moved(run.path), "neither the server nor a client has learnt"


def clients_moved(path):
    """Whether what a client keeps after the second round is not what it kept after the first."""
    store, ids = ClientStore(path / "clients"), json.loads((path / "partition.json").read_text())["clients"]
    first, second = ([store.load(client, before) or {} for client in ids] for before in (2, 3))
    return any(not torch.equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a if k in b)
