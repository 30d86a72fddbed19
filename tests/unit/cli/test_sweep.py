"""`fedloom sweep`: what it refuses, what it runs, and that it goes on after anything that stops it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from project import LANGUAGE
from ruamel.yaml import YAML
from verb_tools import Process, fedloom

SMALL = {"federation__rounds": 2, "federation__clients_per_round": 2, "local__steps": 1}
RUNS = [{"algorithm": "fedavg"}, {"name": "slow", "local.lr": 0.001}]


@pytest.fixture
def sweep(write):
    """Writes `mine/sweep.yaml` beside the experiment; names it as a user would."""

    def sweep(text: str | None = None, config=LANGUAGE, changes=SMALL, **keys) -> Path:
        write(config, **changes)
        path = Path("mine/sweep.yaml")
        if text is not None:
            path.write_text(text)
        else:
            with path.open("w") as file:
                YAML(typ="safe").dump({"name": "both", "base": "experiment.yaml", "runs": RUNS, **keys}, file)
        return path

    return sweep


def adapters(folder="runs/both") -> dict[str, str]:
    found = sorted(Path(folder, "runs").iterdir())
    return {path.name: json.loads((path / "manifest.json").read_text())["adapter_sha256"] for path in found}


def inode(folder="runs/both") -> dict[str, int]:
    """Which files are there: a manifest that is written again is another file."""
    return {path.parent.name: path.stat().st_ino for path in Path(folder, "runs").glob("*/manifest.json")}


# --- what it refuses ---

HEAD = "name: a\nbase: experiment.yaml\n"
MANY = ", ".join(map(str, range(1, 200)))
MISTAKES = {
    "base: experiment.yaml": "line 1, name: this key is required, and missing.",
    "name: a\nbase: experimen.yaml": "line 2, base (experimen.yaml): there is no such file. Did you mean",
    "name: a b\nbase: experiment.yaml": "line 1, name: 'a b' is not text",
    HEAD + "rounds: 3": "line 3, rounds: there is no such key. Write `set: {federation.rounds: ...}`.",
    HEAD + "local: {lr: 1}": "line 3, local: there is no such key. Settings of the experiment go under `set:`.",
    HEAD + "seedz: [1]": "line 3, seedz: there is no such key. Did you mean 'seeds'?",
    HEAD + "seeds: [1, 2, 1]": "line 3, seeds[2]: the seed 1 is given twice.",
    HEAD + "seeds: [-1]": "line 3, seeds[0]: -1 is not a whole number of at least 0.",
    HEAD + "set: {seed: 1}": "line 3, set.seed: this cannot be set here. List it under `seeds:`.",
    HEAD + "set: {federation.round: 1}": "federation.round: there is no such key. Did you mean 'rounds'?",
    HEAD + "grid: {local.lr: []}": "line 3, grid.local.lr: no value is given.",
    HEAD + "runs:\n- {local.lr: 1}\ngrid: {local.lr: [2]}": "line 4, runs[0].local.lr: the grid sets this key too.",
    HEAD + "runs:\n- algorithm: fedavg\n- algorithm: fedavg": "line 5, runs[1]: two runs are called 'fedavg'.",
    HEAD + "runs:\n- {name: ../up}": "line 4, runs[0]: '../up' cannot name a folder.",
    HEAD + "runs:\n- {name: 3}": "line 4, runs[0].name: 3 is not a name.",
    HEAD
    + "runs:\n- algorithm: fedavgg": "line 4, run 'fedavgg', algorithm.name: there is no algorithm 'fedavgg'. Did you",
    HEAD
    + "runs:\n- algorithm: {name: fedavg,\n    muu: 1}": "line 5, run 'fedavg', algorithm.muu: there is no such option",
    HEAD + "grid:\n  local.lr: [0.1,\n    -1]": "line 5, run 'lr-1', local.lr: -1 is not a number above 0.",
    HEAD + "target: {metric: eval_acc, value: 1}": "line 3, target.metric: ",
    HEAD + f"grid: {{local.lr: [{MANY}], local.steps: [{MANY}]}}": "this makes 39,601 runs",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items())
def test_mistakes_are_named_with_line_run_and_fix(sweep, text, message):
    done = fedloom("sweep", sweep(text))
    assert done.code == 2 and message in done.err, done.err
    assert not Path("runs").exists()


def test_every_mistake_at_once(sweep):
    text = HEAD + "runz: 1\nruns:\n- algorithm: fedavgg\n- {algorithm: fedavg, local.lr: fast}\nseeds: [0, 0]\n"
    error = fedloom("sweep", sweep(text)).error
    assert "4 mistakes" in error
    for line in (
        "line 3, runz",
        "line 5, run 'fedavgg'",
        "line 6, run 'fedavg', local.lr: 'fast' is not a number",
        "line 7, seeds[1]",
    ):
        assert line in error


def test_a_mistake_of_the_experiment_itself_is_told_once(sweep):
    file = sweep(changes={"local__lrr": 3})
    error = fedloom("sweep", file).error
    assert "1 mistake\n" in error and "base (experiment.yaml, line 1), local.lrr: there is no such key" in error


def test_more_jobs_than_cores(sweep):
    done = fedloom("sweep", sweep(), "--jobs", 10_000)
    assert done.code == 2 and "10000 runs at once do not fit" in done.error
    assert fedloom("sweep", sweep(), "--jobs", 0).code == 2


def test_a_folder_that_is_a_run(sweep):
    file = sweep()
    assert fedloom("run", "mine/experiment.yaml", "name=both", "federation.rounds=1").code == 0
    done = fedloom("sweep", file)
    assert done.code == 2 and "this folder is a run, not a sweep" in done.error


# --- a sweep and an experiment are told apart ---


@pytest.mark.parametrize("verb", [("run",), ("run", "--dry-run"), ("data", "inspect")])
def test_what_needs_an_experiment_says_that_this_is_a_sweep(sweep, verb):
    done = fedloom(*verb, sweep())
    assert done.code == 2 and "1 mistake\n" in done.error
    assert "this is a sweep, not an experiment: it has `base`, `runs`. Use `fedloom sweep`" in done.error
    assert not Path("runs").exists()


def test_a_sweep_is_told_by_its_runs_where_it_forgets_its_base(sweep):
    done = fedloom("run", sweep("name: a\nruns:\n- algorithm: fedavg\n"))
    assert done.code == 2 and "this is a sweep, not an experiment: it has `runs`" in done.error


def test_an_experiment_with_a_key_of_sweeps_is_an_experiment(write):
    file = write(seeds=[1, 2])
    done = fedloom("run", file)
    assert done.code == 2 and "seeds: there is no such key. Did you mean 'seed'?" in done.error


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_sweep_says_that_this_is_an_experiment(write, options):
    done = fedloom("sweep", write(), *options)
    assert done.code == 2 and "1 mistake\n" in done.error
    assert "this is an experiment, not a sweep: it has `model`, `data`, `federation`. Use `fedloom run`" in done.error
    assert not Path("runs").exists()


def test_a_base_that_is_a_sweep_itself(sweep):
    done = fedloom("sweep", sweep("name: a\nbase: sweep.yaml\n"))
    assert done.code == 2 and "base (sweep.yaml, line 1): this is a sweep, not an experiment" in done.error


@pytest.mark.parametrize(("text", "message"), MISTAKES.items())
def test_validate_finds_the_mistakes_that_sweep_finds(sweep, text, message):
    file = sweep(text)
    done = fedloom("validate", file)
    assert done.code == 2 and message in done.error and done.error == fedloom("sweep", file).error


def test_validate_tells_what_a_sweep_would_run(sweep):
    file = sweep(seeds=[3, 4], grid={"local.steps": [1, 2]}, set={"federation.rounds": 1})
    done = fedloom("validate", file)
    assert done.code == 0 and done.out.startswith(f"{file} is valid\n")
    for line in ("name  both", "runs  8", "seeds  3, 4", "slow--steps-2  local.lr: 0.001, local.steps: 2"):
        assert line in re.sub("  +", "  ", done.out)
    found = fedloom("validate", file, "--json").json
    listed = fedloom("sweep", file, "--dry-run", "--json").json["runs"]
    assert (found["valid"], found["mistakes"]) == (True, [])
    assert [run["name"] for run in found["sweep"]["runs"]] == [run["name"] for run in listed]
    assert not Path("runs").exists()


def test_validate_names_the_mistakes_of_a_sweep_as_json(sweep):
    done = fedloom("validate", sweep(HEAD + "runs:\n- algorithm: fedavgg"), "--json")
    assert done.code == 2 and done.json["valid"] is False
    (mistake,) = done.json["mistakes"]
    assert mistake["key"] == "run 'fedavgg', algorithm.name" and mistake["line"] == 4


def test_a_sweep_takes_no_overrides(sweep):
    done = fedloom("validate", sweep(), "local.lr=1")
    assert done.code == 2 and "a sweep takes no overrides" in done.error and "`set:`" in done.error


# --- what it plans ---


def test_dry_run_lists_every_run_and_writes_nothing(sweep):
    file = sweep(seeds=[3, 4], grid={"local.steps": [1, 2]}, set={"federation.rounds": 1})
    found = fedloom("sweep", file, "--dry-run", "--json").json
    assert [run["name"] for run in found["runs"][:4]] == [
        "fedavg--steps-1--seed-3", "fedavg--steps-2--seed-3", "slow--steps-1--seed-3", "slow--steps-2--seed-3"
    ]  # fmt: skip
    assert len(found["runs"]) == 8 and {run["state"] for run in found["runs"]} == {"to do"}
    assert "local.lr=0.001" in found["runs"][2]["overrides"] and "federation.rounds=1" in found["runs"][2]["overrides"]
    text = fedloom("sweep", file, "--dry-run").out
    assert "8 runs" in text and "slow--steps-2: local.lr: 0.001, local.steps: 2" in text
    assert not Path("runs").exists()


# --- what it runs ---


@pytest.mark.slow
def test_a_sweep_from_one_end_to_the_other_and_again(sweep):
    file = sweep(seeds=[0, 1], target={"metric": "eval_loss", "value": 100.0})
    done = fedloom("sweep", file, "--json")
    assert done.code == 0, done.err
    assert "4 runs" in done.err and "[4/4]" in done.err
    found = done.json
    assert {v["name"] for v in found["variants"]} == {"fedavg", "slow"} and found["baseline"] == "fedavg"
    for variant in found["variants"]:
        assert [run["status"] for run in variant["runs"]] == ["finished"] * 2
        finals = [run["final"] for run in variant["runs"]]
        manifests = [
            json.loads(Path(f"runs/both/runs/{variant['name']}--seed-{s}/manifest.json").read_text()) for s in (0, 1)
        ]
        assert finals == [m["after"]["eval_loss"] for m in manifests]
        assert variant["final"]["mean"] == pytest.approx(sum(finals) / 2)
        assert variant["goal"]["rounds"] == 0
    assert Path("runs/both/comparison.html").exists()
    assert json.loads(Path("runs/both/comparison.json").read_text()) == found

    # each is what `fedloom run` makes
    alone = fedloom(
        "run", "mine/experiment.yaml", "local.lr=0.001", "seed=1", "name=slow--seed-1", "--out", "alone", "--json"
    ).json
    assert alone["adapter_sha256"] == adapters()["slow--seed-1"]
    assert (
        Path("alone/slow--seed-1/config.yaml").read_text()
        == Path("runs/both/runs/slow--seed-1/config.yaml").read_text()
    )

    # what is complete is left alone, and one more seed is added to it
    before = inode()
    more = fedloom("sweep", sweep(seeds=[0, 1, 2], runs=RUNS[:1]))
    assert more.code == 0 and "3 runs, 2 of them complete already" in more.err and "[3/3]" in more.err
    assert {name: inode()[name] for name in before} == before
    assert "page: runs/both/comparison.html" in more.out

    # other settings under the same name are refused, and nothing is touched
    changed = fedloom("sweep", sweep(seeds=[0, 1], runs=[RUNS[0], {"name": "slow", "local.lr": 0.5}]))
    assert changed.code == 2
    assert (
        "2 of the runs here were made with other settings" in changed.error
        and "slow--seed-0 (local.lr)" in changed.error
    )
    assert {name: inode()[name] for name in before} == before


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(sweep):
    runs = [{"name": "wild", "local.optimizer": "sgd", "local.lr": 1e30}, *RUNS]
    done = fedloom("sweep", sweep(runs=runs))
    assert done.code == 1
    assert "wild--seed-0: failed: " in done.err and "diverged" in done.err and "Lower `local.lr`" in done.err
    found = json.loads(Path("runs/both/comparison.json").read_text())
    assert [v["runs"][0]["status"] for v in found["variants"]] == ["finished", "finished", "failed"]
    page = Path("runs/both/comparison.html").read_text()
    assert "1 run failed, and is not counted" in page and "Lower `local.lr`" in page


@pytest.mark.slow
def test_a_run_that_cannot_even_begin_is_told(sweep):
    runs = [{"model.path": "own:nothing", "name": "odd"}, RUNS[1]]
    done = fedloom("sweep", sweep(runs=runs))
    assert done.code == 1 and "odd--seed-0: failed: " in done.err and "nothing" in done.err


def wait_until(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def rounds(run: str) -> int:
    file = Path("runs/both/runs", run, "metrics.jsonl")
    return file.read_text().count("\n") - 1 if file.exists() else -1


TROUBLED = SMALL | {"model__path": "own:troubled", "federation__rounds": 4}


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_it_ends_the_same(sweep):
    file = sweep(changes=TROUBLED)
    first = Process("sweep", file, SLOW=0.3)
    wait_until(lambda: rounds("fedavg--seed-0") >= 1)
    children = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split()
    first.process.kill()
    assert first.end().code == -signal.SIGKILL
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 3)  # nobody goes on unseen
    done = fedloom("sweep", file, "--json")
    assert done.code == 0, done.err

    def undisturbed(name, *overrides):
        return fedloom("run", "mine/experiment.yaml", f"name={name}", *overrides, "--out", "alone", "--json").json

    expected = {"fedavg": undisturbed("fedavg--seed-0"), "slow": undisturbed("slow--seed-0", "local.lr=0.001")}
    assert adapters() == {f"{name}--seed-0": manifest["adapter_sha256"] for name, manifest in expected.items()}
    finals = {v["name"]: v["final"]["mean"] for v in done.json["variants"]}
    assert finals == {name: manifest["after"]["eval_loss"] for name, manifest in expected.items()}


@pytest.mark.slow
def test_one_interrupt_ends_the_rounds_and_the_same_command_goes_on(sweep):
    file = sweep(changes=TROUBLED)
    run = Process("sweep", file, "--jobs", 1, SLOW=0.2)
    wait_until(lambda: rounds("fedavg--seed-0") >= 1)
    run.process.send_signal(signal.SIGINT)
    done = run.end()
    assert done.code == 130 and "Traceback" not in done.err
    assert "stopped; go on with: fedloom sweep mine/sweep.yaml" in done.err
    manifest = json.loads(Path("runs/both/runs/fedavg--seed-0/manifest.json").read_text())
    assert manifest["status"] == "stopped" and 1 <= manifest["rounds_done"] < 4
    assert not Path("runs/both/runs/slow--seed-0").exists()
    assert "not finished yet" in Path("runs/both/comparison.html").read_text()
    assert fedloom("sweep", file).code == 0
    assert len(adapters()) == 2


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(sweep):
    file = sweep(changes=TROUBLED)
    run = Process("sweep", file, "--jobs", 1, SLOW=1)
    wait_until(lambda: rounds("fedavg--seed-0") >= 0)
    run.process.send_signal(signal.SIGINT)
    run.wait_for("finishing the round")
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    done = run.end()
    assert done.code == 130 and done.err.rstrip().endswith("interrupted") and "Traceback" not in done.err
    assert json.loads(Path("runs/both/runs/fedavg--seed-0/manifest.json").read_text())["status"] == "stopped"


@pytest.mark.slow
def test_two_sweeps_do_not_share_a_folder(sweep):
    file = sweep(changes=TROUBLED)
    run = Process("sweep", file, SLOW=0.5)
    try:
        wait_until(lambda: Path("runs/both/runs/fedavg--seed-0").exists())
        done = fedloom("sweep", file)
        assert done.code == 1 and "another process is using this sweep" in done.error
        assert run.process.poll() is None
    finally:
        run.process.kill()
        run.end()


@pytest.mark.slow
def test_children_keep_to_their_threads(sweep, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert fedloom("sweep", sweep(runs=RUNS[:1], set={"engine.threads": 1})).code == 0
    manifest = json.loads(Path("runs/both/runs/fedavg--seed-0/manifest.json").read_text())
    assert manifest["threads"] == 1 and os.environ["OMP_NUM_THREADS"] == "64"
