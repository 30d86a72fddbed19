"""Several methods as one, wherever a run's algorithm is shown."""

import json
from pathlib import Path

import pytest
from report_fixtures import make_run
from typer.testing import CliRunner

from fedloom.cli.app import app
from fedloom.config.explain import json_schema
from fedloom.tracking import card, reading
from fedloom.tracking.compare import compare
from fedloom.tracking.report import wording, write_report

BOTH = {"name": "fedprox", "mu": 0.1, "with": [{"name": "fedadam", "lr": 0.01, "tau": 0.001}]}


@pytest.fixture
def run(tmp_path):
    """A run of two methods."""
    path = make_run(tmp_path / "runs" / "both", algorithm="fedprox")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"algorithm": BOTH}))
    config = (path / "config.yaml").read_text()
    spec = json.dumps(BOTH)
    (path / "config.yaml").write_text(config.replace("algorithm:\n  name: fedprox\n", f"algorithm: {spec}\n"))
    return path


@pytest.mark.parametrize(
    ("algorithm", "name", "label", "line"),
    [
        (BOTH, "fedprox with fedadam", "FedProx with FedAdam", "FedProx (mu 0.1) with FedAdam (lr 0.01, tau 0.001)"),
        ({"name": "fedavgm", "beta": 0.9}, "fedavgm", "FedAvgM", "FedAvgM (beta 0.9)"),
        ({"name": "ffa_lora"}, "ffa_lora", "FFALoRA", "FFALoRA"),
        ({"name": "local"}, "local", "Clients alone", "Clients alone"),
        ({"name": "prox:FedProx", "mu": None}, "prox:FedProx", "prox:FedProx", "prox:FedProx"),
        ({}, "", "", ""),
        (None, "", "", ""),
    ],
    ids=str,
)
def test_names(algorithm, name, label, line):
    assert wording.algorithm_name(algorithm) == name
    assert wording.algorithm_label(algorithm) == label
    assert wording.algorithm_line(algorithm) == line


def test_in_the_report(run):
    page = write_report(run).read_text()
    assert "FedProx with FedAdam" in page
    assert "FedProx (mu 0.1) with FedAdam (lr 0.01, tau 0.001)" in page


def test_in_the_card(run):
    content = card._card_content(reading.RunFiles.open(run), "sample:x", "mit", run / "adapter")
    assert content["algorithm"].replace("\\", "") == "FedProx (mu 0.1) with FedAdam (lr 0.01, tau 0.001)"


def test_in_a_comparison(run, tmp_path):
    made = compare([run, make_run(tmp_path / "runs" / "one", algorithm="fedprox")])
    assert [row.algorithm for row in made.rows] == ["fedprox with fedadam", "fedprox"]
    assert {d.key: d.values for d in made.differences} == {
        "algorithm.mu": (0.1, "not set"),
        "algorithm.with": ("fedadam", "not set"),
        "algorithm.with.fedadam.lr": (0.01, "not set"),
        "algorithm.with.fedadam.tau": (0.001, "not set"),
    }


def test_in_the_schema():
    _, whole = json_schema()["properties"]["algorithm"]["anyOf"]
    name, method, several = whole["properties"]["with"]["anyOf"]
    assert (name["type"], method["required"], several["type"]) == ("string", ["name"], "array")
    assert several["items"]["anyOf"] == [name, method]


def test_in_validate():
    toy = Path(__file__).parents[3] / "examples" / "toy" / "experiment.yaml"
    spec = "algorithm={name: fedprox, mu: 0.5, with: {name: fedavgm, beta: 0.8}}"
    result = CliRunner().invoke(app, ["validate", str(toy), spec])
    assert "  algorithm   fedprox (mu 0.5) with fedavgm (beta 0.8, lr 1.0)\n" in result.stdout
