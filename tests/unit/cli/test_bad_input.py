"""What a user can get wrong, and the one paragraph that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from project import CLASSIFY, LANGUAGE
from verb_tools import damaged_model, fedloom

FILES = {"data__source": "rows.jsonl"}
GOOD = [{"question": f"w{i % 15}", "answer": f"w{i % 4}", "topic": f"topic-{i % 4}"} for i in range(40)]


def lines(*bad: str) -> str:
    """A JSONL file of good rows with bad lines from line 7 on."""
    texts = [json.dumps(row) for row in GOOD]
    return "\n".join([*texts[:6], *bad, *texts[6:]])


def broken_builder(body: str) -> str:
    return f"\n\ndef builder(labels):\n    {body}\n"


# What stands in rows.jsonl, what is appended to own.py, what changes in the experiment; the exit code and the words.
CASES = {
    # data
    "unreadable row": (
        lines('{"question": "w1", '),
        "",
        FILES,
        2,
        ["rows.jsonl, line 7: this line is not a JSON object"],
    ),
    "row that is a list": (lines("[1, 2]"), "", FILES, 2, ["rows.jsonl, line 7"]),
    "empty answer": (
        lines('{"question": "w1", "answer": " ", "topic": "topic-0"}'),
        "",
        FILES,
        2,
        ["rows.jsonl, line 7: the column 'answer' is empty", "The field 'output' is required"],
    ),
    "answer that is a list": (lines('{"question": "w1", "answer": ["a"]}'), "", FILES, 2, ["line 7", "holds a list"]),
    "row without an owner": (
        lines('{"question": "w1", "answer": "w2"}'),
        "",
        FILES,
        2,
        ["data.partition: 1 of 37 rows have no value in the column 'topic'"],
    ),
    "missing column": (
        lines(),
        "",
        FILES | {"data__fields": {"instruction": "question", "output": "reply"}},
        2,
        ["rows.jsonl: there is no column 'reply' for the field 'output'", "answer, question, topic"],
    ),
    "missing label column": (
        lines(),
        "",
        FILES | {"model": CLASSIFY["model"], "data__template": "auto", "data__fields": {"text": "question"}},
        2,
        ["there is no column 'label'", "rows.jsonl"],
    ),
    "missing partition column": (
        lines(),
        "",
        FILES | {"data__partition__column": "topics"},
        2,
        ["there is no column 'topics'", "Did you mean 'topic'?"],
    ),
    "empty file": ("", "", FILES, 2, ["rows.jsonl"]),
    "missing file": (None, "", {"data__source": "raws.jsonl"}, 2, ["there is no file", "raws.jsonl"]),
    "file of another kind": (None, "", {"data__source": "own.py"}, 2, ["own.py"]),
    "too few rows for a client": (
        lines('{"question": "w1", "answer": "w2", "topic": "tiny"}'),
        "",
        FILES,
        2,
        ["data.partition: 1 of 5 clients have fewer than 2 rows: tiny 1", "Lower data.min_rows"],
    ),
    "partition larger than the data": (
        None,
        "",
        {"data__partition": {"kind": "iid", "clients": 500}},
        2,
        ["data.partition: 108 rows are too few for 500 clients"],
    ),
    "every answer cut": (
        lines(),
        "",
        FILES | {"data__template": "alpaca", "data__max_length": 8},
        2,
        ["no row can be used"],
    ),
    "unknown sample": (None, "", {"data__source": "sample:chatterbox"}, 2, ["data.source", "'chatterbot'"]),
    "sample of the other kind": (None, "", {"model__path": "sample:chatterbot"}, 2, ["model.path", "not a model"]),
    "own rows fail midway": (
        None,
        "\n\ndef failing():\n    yield from [next(pairs())] * 3\n    raise RuntimeError('the database is gone')\n",
        {"data__source": "own:failing"},
        2,
        ["own:failing, row 4: it failed: RuntimeError: the database is gone"],
    ),
    "own rows are no mappings": (
        None,
        "\n\ndef numbers():\n    return [1, 2, 3]\n",
        {"data__source": "own:numbers"},
        2,
        ["own:numbers, row 1: a row must be a mapping, this is a int"],
    ),
    # the model
    "no such model folder": (None, "", {"model__path": "./models/none"}, 2, ["model.path", "./models/none"]),
    "folder that is no model": (
        None,
        "",
        {"model__path": "empty"},
        2,
        ["model.path: the tokenizer 'empty' cannot be loaded"],
    ),
    "damaged weights": (None, "", {"model__path": "damaged"}, 2, ["model.path: the model 'damaged' cannot be loaded"]),
    "unreachable hub name": (
        None,
        "",
        {"model__path": "nobody/nothing-here"},
        2,
        ["model.path", "nobody/nothing-here"],
    ),
    "own module missing": (None, "", {"model__path": "mine:model"}, 2, ["there is no module 'mine'"]),
    "own attribute missing": (None, "", {"model__path": "own:languagemodel"}, 2, ["Did you mean 'language_model'?"]),
    "own module fails": (
        None,
        "\n\nimport nonesuch\n",
        {},
        2,
        ["the module 'own' needs 'nonesuch', which is not installed"],
    ),
    "own module raises": (
        None,
        "\n\nraise RuntimeError('half written')\n",
        {},
        2,
        ["the module 'own' fails when it is imported: RuntimeError: half written (own.py, line"],
    ),
    "builder returns the wrong thing": (
        None,
        broken_builder("return tokenizer()"),
        {"model__path": "own:builder"},
        2,
        ["model.path: 'own:builder' did not return (model, tokenizer)", "def build(labels"],
    ),
    "builder returns no tokenizer": (
        None,
        broken_builder("return language_model(labels)[0], None"),
        {"model__path": "own:builder"},
        2,
        ["model.path: 'own:builder' did not return (model, tokenizer)"],
    ),
    "builder raises": (
        None,
        broken_builder("raise MemoryError('too large')"),
        {"model__path": "own:builder"},
        2,
        ["model.path: 'own:builder' failed: MemoryError: too large (own.py, line"],
    ),
    "adapter target matches nothing": (
        None,
        "",
        {"adapter__targets": ["q_prj"]},
        2,
        ["adapter.targets: no module of the model is named 'q_prj'. Did you mean 'q_proj'?"],
    ),
    "target expression matches nothing": (None, "", {"adapter__targets": ".*attention.query"}, 2, ["adapter.targets"]),
    "module to save matches nothing": (
        None,
        "",
        {"adapter__modules_to_save": ["head"]},
        2,
        ["adapter.modules_to_save"],
    ),
    "target that takes no adapter": (None, "", {"adapter__targets": ["input_layernorm"]}, 2, ["adapter.targets"]),
    # the rest
    "model without a head of the task": (
        None,
        "",
        {"model__task": "classification", "data": CLASSIFY["data"], "local__steps": 1},
        2,
        ["model: the model cannot be judged: RuntimeError: Expected target size", "Check that the model fits the task"],
    ),
    "no cuda": (None, "", {"engine__device": "cuda"}, 2, ["engine.device: there is no CUDA device here. Use `auto`"]),
    "group of a full model": (
        None,
        "",
        {"adapter": {"kind": "full"}, "local__grouping": "grouped"},
        2,
        ["local.grouping"],
    ),
    "unknown key": (None, "", {"federation__round": 3}, 2, ["federation.round", "'rounds'"]),
}


@pytest.fixture
def prepared_place(place: Path) -> Path:
    """A folder that holds no model, and one whose weights are damaged, beside the experiment."""

    (place / "mine" / "empty").mkdir(parents=True)
    damaged_model(place / "mine" / "damaged")
    return place


@pytest.mark.parametrize(("rows", "code", "changes", "exit_code", "words"), CASES.values(), ids=CASES)
def test_bad_input_is_one_paragraph(prepared_place, write, rows, code, changes, exit_code, words) -> None:
    file = write(LANGUAGE, **changes)
    if rows is not None:
        Path("mine/rows.jsonl").write_text(rows)
    with Path("mine/own.py").open("a") as own:
        own.write(code)
    done = fedloom("run", file)
    assert [word for word in words if word not in done.error] == [], done.error
    assert done.code == exit_code
    assert done.out == ""


def test_an_experiment_that_is_not_there(place) -> None:
    for verb in (["run"], ["data", "inspect"], ["validate"]):
        done = fedloom(*verb, "nothing.yaml")
        assert done.code == 2 and "nothing.yaml" in done.error


@pytest.mark.parametrize("override", ["federation.rounds", "=3", "federation.rounds=many", "local={", "federation=3"])
def test_malformed_overrides(write, override) -> None:
    done = fedloom("run", write(), override)
    assert done.code == 2 and override.partition("=")[0] in done.error


VERBS: list[Callable[[str], list[str]]] = [
    lambda run: ["resume", run],
    lambda run: ["eval", run],
    lambda run: ["export", run, "--to", "out"],
    lambda run: ["report", run],
    lambda run: ["compare", run, "runs/other"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb("")[0])
@pytest.mark.parametrize("run", ["runs/none", ".", "file"])
def test_a_run_that_is_not_there(place, verb, run) -> None:
    Path("file").touch()
    done = fedloom(*verb(run))
    assert done.code == 2
    assert f"{run if run != '.' else place}: this is not a run directory" in done.error or run == "."
    assert "`fedloom run`" in done.error


@pytest.mark.parametrize("verb", ["eval", "export"])
def test_a_round_without_a_checkpoint(finished, monkeypatch, verb, tmp_path) -> None:
    path, _ = finished
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    done = fedloom(verb, path, "--round", 77, *(["--to", tmp_path / "out"] if verb == "export" else []))
    assert done.code == 2
    assert "there is no checkpoint of round 77. There are:" in done.error


def test_folders_that_cannot_be_written(write, finished) -> None:
    """Below a regular file, where root may not write either."""
    Path("file").touch()
    file = write()
    shutil.copytree(finished[0], "copy")
    for verb in (
        ["run", file, "--out", "file/runs"],
        ["export", finished[0], "--to", "file/out"],
        ["export", finished[0], "--merged", "--to", "file/out"],
        ["data", "partition", file, "--to", "file/parts.json"],
        ["data", "inspect", file, "--picture", "file/p.svg"],
        ["compare", finished[0], "copy", "--html", "file/page.html"],
    ):
        done = fedloom(*verb)
        assert done.code == 2 and "file" in done.error, verb


def test_a_cache_that_cannot_be_written(write, monkeypatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("FEDLOOM_CACHE", str(Path("file").resolve() / "cache"))
    done = fedloom("run", write())
    assert done.code == 2 and "the tokenised rows could not be written" in done.error


def test_a_failed_run_says_so_in_its_own_records(write, place) -> None:
    assert fedloom("run", write(adapter__targets=["q_prj"])).code == 2
    manifest = json.loads((place / "runs/tiny/manifest.json").read_text())
    assert manifest["status"] == "failed" and "q_prj" in manifest["failure"]
    assert fedloom("eval", "runs/tiny").code == 2
    assert fedloom("report", "runs/tiny").code == 0


def test_data_that_changed_since_is_refused(write) -> None:
    texts = lines()
    Path("mine").mkdir(exist_ok=True)
    Path("mine/rows.jsonl").write_text(texts)
    assert fedloom("run", write(**FILES)).code == 0
    Path("mine/rows.jsonl").write_text(texts.replace("w1", "w2"))
    done = fedloom("eval", "runs/tiny")
    assert done.code == 1
    assert "`data` is not what it was when the run began" in done.error
