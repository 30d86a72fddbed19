"""On a GPU: the same run, to rounding."""

import pytest
import torch
from project import LANGUAGE, experiment

from fedloom import api


@pytest.mark.gpu
@pytest.mark.parametrize("grouping", ["grouped", "in_place"])
def test_a_gpu_gives_what_a_cpu_gives(tmp_path, monkeypatch, grouping):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    changes = {"local__optimizer": "sgd", "local__lr": 0.02, "local__grouping": grouping}

    def vector(device):
        run = api.run(experiment(tmp_path / "mine", LANGUAGE, engine__device=device, **changes), tmp_path / "runs")
        assert run.manifest["device"].startswith(device)
        return api.open_run(run.path).progress.w

    torch.testing.assert_close(vector("cuda"), vector("cpu"), rtol=0, atol=1e-4)
