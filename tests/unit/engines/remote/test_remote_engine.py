"""`engine: remote` over a link in memory: the same bytes as a local run, whatever happens on the way."""

from __future__ import annotations

import pytest
import torch
from memory_link import Broker
from remote_toy import REMOTE, SITES, Remote, local_run, same, settings_of, write_toy

from fedloom import api
from fedloom.algorithms import ALGORITHMS

FAST = {"fedavg", "scaffold", "fedyogi", "fedex-lora", "fedper", "fedbuff"}


@pytest.fixture(autouse=True)
def light(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)
    torch.set_num_threads(1)


@pytest.fixture
def toy(tmp_path):
    return write_toy(tmp_path)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = Remote(tmp_path, Broker(), monkeypatch)
    with made.crew:
        made.crew.join(*SITES)
        yield made


NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS if name != "central"
]


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_ends_in_the_same_bytes(name, toy, remote, tmp_path):
    rounds = 4 if name in ("fedbuff", "fedasync") else 2
    overrides = [*settings_of(name, toy.parent), "local.grouping=in_place", f"federation.rounds={rounds}"]
    manifest, w = local_run(toy, overrides, tmp_path / "local")
    remote.go(api.load(toy, [*overrides, REMOTE]))
    assert same(remote.w, w)
    assert remote.manifest.get("adapter_sha256") == manifest.get("adapter_sha256")
