"""The verbs that load no weights: what they print, their exit codes, and that they stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedloom.cli.app import app
from fedloom.cli.console import Verbs
from fedloom.cli.list import KINDS
from fedloom.errors import ConfigError, Mistake, RunError, UsageError

GOOD = """\
name: first
model: {path: "sample:all-minilm-l6-v2", task: classification}
data:
  source: sample:sentiment-platforms
  partition: {kind: column, column: platform}
federation: {rounds: 3}
local: {steps: 5}
"""
HEAVY = "torch transformers peft datasets matplotlib pyarrow numpy"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "experiment.yaml").write_text(GOOD)
    return tmp_path / "experiment.yaml"


def invoke(*args: object, on: typer.Typer = app) -> tuple[int, str, str]:
    result = CliRunner().invoke(on, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def imported(*args: object, code: int) -> list[str]:
    """The heavy libraries that a command imports in a process of its own, which must end with this code."""
    program = (
        "import sys\nfrom fedloom.cli.app import main\n"
        f"sys.argv = ['fedloom', *{[str(arg) for arg in args]!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"print('IMPORTED', code, *sorted(set('{HEAVY}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    words = done.stdout.rpartition("IMPORTED")[2].split()
    assert words[0] in (str(code), "None"), done.stderr
    return words[1:]


# --- validate ---


def test_a_valid_file(file: Path) -> None:
    code, out, _ = invoke("validate", file)
    assert code == 0
    assert out.startswith(f"{file} is valid")
    assert all(
        words in out
        for words in ("first, seed 0", "sample:sentiment-platforms", "fedavg", "3 rounds of all", "5 steps")
    )


def test_a_valid_file_as_json(file: Path) -> None:
    code, out, _ = invoke("validate", file, "local.lr=1e-2", "--json")
    found = json.loads(out)
    assert (code, found["valid"], found["mistakes"]) == (0, True, [])
    assert found["experiment"]["local"]["lr"] == 0.01


MISTAKES = [
    ("federation.rounds=0", "federation.rounds", "of at least 1"),
    ("federation.round=3", "federation.round", "'rounds'"),
    ("lr=1", "lr", "under `local`"),
    ("algorithm=fedavgg", "algorithm.name", "'fedavg'"),
    ("model.task=clasification", "model.task", "'classification'"),
    ("data.source=sample:sentiment-platform", "data.source", "'sentiment-platforms'"),
    ("data.source=sample:all-minilm-l6-v2", "data.source", "not a dataset"),
    ("data.partition.column=platfrm", "data.partition.column", "'platform'"),
    ("data.source=nowhere.csv", "data.source", "no file"),
    ("local.epochs=1", "local.steps", "both"),
    ("local.momentum=0.9", "local.momentum", "only sgd"),
    ("evaluation.metric=accuracy", "evaluation.metric", "eval_accuracy"),
    ("engine=slurm", "engine.kind", "local"),
    ("rounds", "rounds", "key.sub=value"),
]


@pytest.mark.parametrize(("override", "key", "words"), MISTAKES, ids=str)
def test_a_mistake_ends_with_2_and_is_told_on_stderr(override: str, key: str, words: str, file: Path) -> None:
    code, out, err = invoke("validate", file, override)
    assert (code, out) == (2, "")
    assert f", {key}: " in err
    assert words in err
    assert "Traceback" not in err
    code, out, _ = invoke("validate", file, override, "--json")
    found = json.loads(out)
    assert (code, found["valid"], [mistake["key"] for mistake in found["mistakes"]]) == (2, False, [key])


def test_all_mistakes_are_told(file: Path) -> None:
    code, _, err = invoke("validate", file, *(override for override, *_ in MISTAKES[:3]))
    assert code == 2
    assert [key for _, key, _ in MISTAKES[:3] if f"{key}: " not in err] == []


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[3] / "examples").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_example_is_valid(example: Path) -> None:
    verb = ("sweep", "--dry-run") if "\nbase:" in example.read_text() else ("validate",)
    code, _, err = invoke(*verb, example)
    assert (code, err) == (0, "")


def test_a_missing_file_names_the_near_one(file: Path) -> None:
    code, _, err = invoke("validate", file.with_name("experimnt.yaml"))
    assert code == 2
    assert "Did you mean" in err and "experiment.yaml" in err


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["validate", "FILE"], 0),
        (["validate", "FILE", "lr=1", "model.task=x"], 2),
        (["validate", "nowhere.yaml"], 2),
        (["explain", "--all"], 0),
        (["validate", "SWEEP"], 0),
        (["sweep", "FILE"], 2),
        (["list", "partitions"], 0),
        (["list", "models"], 0),
        (["list", "tasks"], 0),
        (["list", "algorithms"], 0),
        (["explain", "algorithm.fedprox"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_nothing_heavy_is_imported(args: list[str], code: int, file: Path) -> None:
    sweep = file.with_name("sweep.yaml")
    sweep.write_text("name: several\nbase: experiment.yaml\nruns:\n- local.lr: 0.01\n- algorithm: fedadam\n")
    files = {"FILE": file, "SWEEP": sweep}
    assert imported(*(files.get(arg, arg) for arg in args), code=code) == []


# --- explain, list, doctor ---


def test_explain() -> None:
    assert invoke("explain", "local.lr")[1].startswith("local.lr\n  Learning rate.")
    assert "checkpoints" in invoke("explain")[1]
    assert json.loads(invoke("explain", "--schema")[1])["title"] == "Experiment"
    assert json.loads(invoke("explain", "local.lr", "--json")[1])[0]["default"] == 0.001
    assert invoke("explain", "--all")[1].count("\n  type: ") > 60
    code, _, err = invoke("explain", "local.lrr")
    assert (code, "Did you mean 'local.lr'?" in err) == (2, True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_names(kind: str) -> None:
    code, out, _ = invoke("list", kind)
    rows = json.loads(invoke("list", kind, "--json")[1])
    assert code == 0
    assert rows and all(row["name"] and row["name"] in out for row in rows)


def test_list_alone_names_the_kinds_and_refuses_others() -> None:
    assert invoke("list")[1].split() == list(KINDS)
    code, _, err = invoke("list", "algorithm")
    assert (code, "Did you mean 'algorithms'?" in err) == (2, True)


def test_doctor_says_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "not" / "there"))
    code, out, _ = invoke("doctor")
    found = json.loads(invoke("doctor", "--json")[1])
    assert code == 0
    assert found["cache"]["samples"].startswith("none yet")
    assert found["cache"]["folder"] == str(tmp_path / "not" / "there")
    assert found["packages"]["torch"] in out
    assert any(name.startswith("cuda") for name in found["devices"])


def test_doctor_survives_a_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = invoke("doctor")
    assert (code, "torch             cannot be imported" in out) == (0, True)


# --- the command itself ---


@pytest.mark.parametrize("verb", [info.name for info in (*app.registered_commands, *app.registered_groups)])
def test_every_verb_has_help(verb: str) -> None:
    code, out, _ = invoke(verb, "--help")
    assert code == 0
    assert "Example" in out or "Commands" in out


def failing(error: BaseException) -> typer.Typer:
    broken = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @broken.callback()
    def _root(debug: bool = typer.Option(False, "--debug")) -> None:
        pass

    @broken.command()
    def fail() -> None:
        raise error

    inner = typer.Typer()
    inner.command("fail")(fail)
    inner.command("other")(fail)
    broken.add_typer(inner, name="inner")
    return broken


@pytest.mark.parametrize("args", [["fail"], ["inner", "fail"]], ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("no such thing", fix="Look again"), 2, "error: no such thing. Look again."),
        (ConfigError("a.yaml", [Mistake("seed", 3, "wrong")]), 2, "line 3, seed: wrong."),
        (RunError("the folder is in use", where="runs/a"), 1, "error: runs/a: the folder is in use."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ValueError("a surprise"),
            1,
            "error: ValueError: a surprise. This is a fault of fedloom; run again with --debug",
        ),
        (typer.Exit(7), 7, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_paragraph_with_their_code(args: list[str], error: BaseException, code: int, words: str) -> None:
    found, out, err = invoke(*args, on=failing(error))
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [["--debug", "fail"], ["fail", "--debug"], ["inner", "fail", "--debug"]], ids=" ".join)
def test_debug_shows_the_traceback_wherever_it_stands(args: list[str]) -> None:
    code, _, err = invoke(*args, on=failing(ValueError("a surprise")))
    assert code == 1
    assert "Traceback" in err and "raise error" in err


def test_wrong_arguments_are_the_users_input() -> None:
    assert invoke("nonesuch")[0] == 2
    assert invoke("validate")[0] == 2
    assert invoke("list", "--nonesuch")[0] == 2


def test_python_m_fedloom_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fedloom", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("fedloom")
