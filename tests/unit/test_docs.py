"""Documentation is true: its experiment files validate, its methods train, its commands run."""

import json
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
from project import LANGUAGE, experiment
from ruamel.yaml import YAML
from typer.testing import CliRunner

from fedloom import api
from fedloom.algorithms import ALGORITHMS
from fedloom.cli.app import app
from fedloom.config.site import read_site
from fedloom.sweep import load_plan

ROOT = Path(__file__).parents[2]
LIGHT = ("validate", "explain", "list", "doctor")


def blocks(file, language):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / file).read_text(), re.S | re.M)
    return [text for kind, text in fences if kind == language]


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["round"]]


def commands(file):
    lines = [line.strip() for block in blocks(file, "") for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith(".venv/bin/fedloom")]


def test_the_readme_names_commands():
    assert len(commands("README.md")) >= 4


@pytest.mark.parametrize("command", [c for c in commands("README.md") if c.split()[1] in LIGHT])
def test_light_commands_of_the_readme_run(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands("README.md") if c.split()[1] not in LIGHT])
def test_heavy_commands_of_the_readme_run(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("text", [*blocks("README.md", "yaml"), *blocks("docs/backprop-free.md", "yaml")])
def test_experiments_in_the_documents_are_valid(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    assert api.load(tmp_path / "x.yaml").federation.rounds > 0


def test_the_devices_of_the_guide_are_an_experiments(tmp_path):
    """Its YAML in place of an example's own, and its selector, train."""
    parts = YAML(typ="safe").load(blocks("docs/devices.md", "yaml")[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(blocks("docs/devices.md", "python")[0])
    parts["federation"] |= {"rounds": 2, "clients_per_round": 2, "selection": "mine:Fastest"}
    run = api.run(experiment(tmp_path / "mine", LANGUAGE, **parts), tmp_path / "runs")
    assert run.finished and [r["asked"] for r in records(run.path)] == [3, 3]


def test_the_commands_of_the_guide_to_devices_run(tmp_path, monkeypatch):
    lines = [line for block in blocks("docs/devices.md", "") for line in block.splitlines()]
    assert len(lines) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    first = CliRunner().invoke(app, shlex.split(lines[0])[1:])
    assert first.exit_code == 0 and (tmp_path / "phones.parquet").exists(), first.output
    whole = CliRunner().invoke(app, [*shlex.split(lines[1])[1:4], "--help"])
    assert whole.exit_code == 0 and "--devices" in lines[1] and "--devices" in whole.output


EXAMPLES = sorted(
    str(p.relative_to(ROOT / "examples")) for p in (ROOT / "examples").rglob("*.yaml") if p.parent.name != "remote"
)
SWEEPS = [file for file in EXAMPLES if re.search(r"^base:", (ROOT / "examples" / file).read_text(), re.M)]


@pytest.mark.parametrize("file", EXAMPLES)
def test_examples_are_valid_and_say_how_to_run_them(file):
    text = (ROOT / "examples" / file).read_text()
    header = text[: text.index("\nname:")]
    path, verb = ROOT / "examples" / file, "sweep" if file in SWEEPS else "run"
    name = load_plan(path).name if file in SWEEPS else api.load(path).name
    assert name == (Path(file).stem if Path(file).parent == Path() else Path(file).parent.name)
    for part in (f"# Run:    fedloom {verb} examples/{file}", "# Takes:", "# Prints:"):
        assert part in header
    assert "TIME" not in header and "RESULT" not in header


def test_the_files_of_the_federation_are_valid(tmp_path):
    (tmp_path / "everyone.csv").write_text("text,label,client\na,positive,films\n")
    text = (ROOT / "examples" / "remote" / "experiment.yaml").read_text()
    (tmp_path / "experiment.yaml").write_text(text)
    loaded = api.load(tmp_path / "experiment.yaml")
    for file in (ROOT / "examples" / "remote").glob("site-*.yaml"):
        site = read_site(file)
        assert loaded.model.task in site.accept.tasks and loaded.federation.rounds <= site.accept.max_rounds
        assert set(site.data.labels.values()) <= set(loaded.data.labels)
    assert YAML(typ="safe").load(ROOT / "examples" / "remote" / "compose.yaml")["services"].keys() == {
        "coordinator",
        "client",
    }


@pytest.mark.parametrize("unit", sorted((ROOT / "examples" / "remote").glob("*.service")), ids=lambda p: p.stem)
def test_units_start_commands_that_exist(unit):
    found = ConfigParser(strict=False, interpolation=None)
    found.optionxform = str
    found.read(unit)
    words = shlex.split(found["Service"]["ExecStart"])
    assert words[0].endswith("/bin/fedloom")
    known = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
    assert known.exit_code == 0 and all(word in known.output for word in words if word.startswith("--"))


@pytest.mark.parametrize("file", [file for file in SWEEPS if Path(file).stem.startswith("algorithms")])
def test_sweeps_compare_every_method_or_say_why_not(file):
    """A new algorithm cannot be forgotten: it is among the runs, or the file's comments name it."""
    plan, text = load_plan(ROOT / "examples" / file), (ROOT / "examples" / file).read_text()
    swept = {YAML(typ="safe").load(run.config)["algorithm"]["name"] for run in plan.runs}
    comments = " ".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    assert {name for name in ALGORITHMS if name not in swept and not re.search(rf"\b{name}\b", comments)} == set()


def test_the_method_of_the_guide_trains_and_differs_from_fedavg(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "prox.py").write_text(blocks("CONTRIBUTING.md", "python")[0])

    def vector(algorithm):
        run = api.run(experiment(tmp_path / "mine", LANGUAGE, algorithm=algorithm), tmp_path / "runs")
        return api.open_run(run.path).progress.w

    plain, none, some = (
        vector(a) for a in ("fedavg", {"name": "prox:FedProx", "mu": 0.0}, {"name": "prox:FedProx", "mu": 5.0})
    )
    assert torch.equal(plain, none), "with mu 0 it is FedAvg"
    assert not torch.allclose(plain, some, atol=1e-4)


def test_the_data_and_settings_of_the_guide_load(tmp_path):
    (tmp_path / "answers.py").write_text(blocks("CONTRIBUTING.md", "python")[1])
    yaml = YAML(typ="safe")
    parts = [yaml.load(text) for text in blocks("CONTRIBUTING.md", "yaml")]
    assert [set(p) for p in parts] == [{"algorithm"}, {"data"}, {"model", "adapter"}]
    changes = {"data": parts[1]["data"] | {"template": "plain", "held_out": 0.0, "validation": 0.0, "min_rows": 1}}
    from fedloom.data.sources import open_source

    loaded = experiment(tmp_path, LANGUAGE, **changes)
    assert [row.values["site"] for row in open_source(loaded.data, loaded.base)] == ["north", "south"]
