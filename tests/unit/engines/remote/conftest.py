"""The toy federation over a link in memory, for every test of this folder that asks for it."""

from __future__ import annotations

import pytest
import torch
from memory_link import Broker
from remote_toy import FEW, SITES, Remote, write_toy


@pytest.fixture(autouse=True)
def light(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)
    torch.set_num_threads(1)


@pytest.fixture
def toy(tmp_path):
    return write_toy(tmp_path)


@pytest.fixture
def everyone(tmp_path, monkeypatch):
    made = Remote(tmp_path, Broker(), monkeypatch)
    with made.crew:
        made.crew.join(*SITES)
        yield made


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Four clients, which is quicker."""
    made = Remote(tmp_path, Broker(), monkeypatch, FEW)
    with made.crew:
        made.crew.join(*FEW)
        yield made
