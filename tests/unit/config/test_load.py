"""What an experiment file means once it is read, and that it is written back whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistakes_fakes import BASE, load_fake, write_folder

from fedloom.config.document import parse
from fedloom.config.load import dump
from fedloom.config.schema import DirichletPartition, FullAdapter, LoraAdapter


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.0e-3", 0.002),
        ("-1.5", -1.5),
        ("5", 5),
        ("0x10", 16),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("'3'", "3"),
        ("[a, 1]", ["a", 1]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse(f"key: {text}").data["key"]
    assert (read, type(read)) == (value, type(value))


def test_the_lines_of_keys_and_items() -> None:
    document = parse("a: 1\n\nb:\n  # comment\n  c: [1,\n    2]\n")
    assert [document.line(place) for place in (("a",), ("b",), ("b", "c"), ("b", "c", 1), ("b", "absent"))] == [
        1,
        3,
        5,
        6,
        3,
    ]


def test_aliases_are_read_and_cannot_explode() -> None:
    assert parse("a: &x [1, 2]\nb: *x").data == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    assert "without end" in str(parse(bomb).mistakes[0])
    assert "nested too deeply" in str(parse("[" * 5000).mistakes[0])


@pytest.mark.parametrize(
    ("override", "of", "value"),
    [
        ("local.lr=1e-2", lambda e: e.local.lr, 0.01),
        ("local.clip=1", lambda e: e.local.clip, 1),
        ("local.clip=null", lambda e: e.local.clip, None),
        ("local.schedule=cosine", lambda e: e.local.schedule.kind, "cosine"),
        ("local.schedule.kind=cosine", lambda e: e.local.schedule.kind, "cosine"),
        ("evaluation.every=0", lambda e: e.evaluation.every, 0),
        ("engine=local", lambda e: e.engine.kind, "local"),
        ("engine.group_size=auto", lambda e: e.engine.group_size, "auto"),
        ("algorithm=fedprox", lambda e: e.algorithm, {"name": "fedprox", "mu": 0.01}),
        ("algorithm={name: fedprox, mu: 1}", lambda e: e.algorithm, {"name": "fedprox", "mu": 1.0}),
        ("adapter=full", lambda e: type(e.adapter), FullAdapter),
        ("adapter=lora", lambda e: e.adapter, LoraAdapter()),
        ("adapter.alpha=8", lambda e: (type(e.adapter), e.adapter.r, e.adapter.alpha), (LoraAdapter, 4, 8.0)),
        ("data.where.shop=a=b", lambda e: e.data.where, {"shop": "a=b"}),
        ("data.where.shop=[a, 1]", lambda e: e.data.where, {"shop": ["a", 1]}),
        ("data.fields.text=shop", lambda e: e.data.fields, {"text": "shop"}),
        ("name='7'", lambda e: e.name, "7"),
        (
            "data.partition={kind: dirichlet, clients: 3, alpha: 1}",
            lambda e: e.data.partition,
            DirichletPartition(kind="dirichlet", clients=3, alpha=1.0),
        ),
        ("model.path=org/model.v2", lambda e: e.model.path, "org/model.v2"),
        ("data.source=rows.jsonl", lambda e: e.data.source, "rows.jsonl"),
        ("data.source=org/data:config", lambda e: (e.data.source, e.data.split), ("org/data:config", "train")),
        ("data.source=mine:rows", lambda e: e.data.source, "mine:rows"),
        ("adapter.targets='.*_proj'", lambda e: e.adapter.targets, ".*_proj"),
        ("data.partition={kind: given, file: clients.json}", lambda e: e.data.partition.kind, "given"),
    ],
)
def test_overrides_shorthands_and_round_trip(override, of, value, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    experiment = load_fake(write_folder(tmp_path), [override])
    assert of(experiment) == value
    again = tmp_path / "again.yaml"
    again.write_text(dump(experiment))
    assert load_fake(again) == experiment


def test_later_overrides_win_and_change_what_an_earlier_one_made(tmp_path: Path) -> None:
    overrides = ["algorithm=fedprox", "algorithm.mu=2", "local.lr=1", "local.lr=2"]
    experiment = load_fake(write_folder(tmp_path), overrides)
    assert (experiment.algorithm["mu"], experiment.local.lr) == (2.0, 2)


def test_an_override_of_a_kind_left_out_keeps_the_default_kind(tmp_path: Path) -> None:
    file = write_folder(tmp_path)
    file.write_text(BASE.replace("adapter: {r: 4}\n", ""))
    assert load_fake(file, ["adapter.r=2"]).adapter == LoraAdapter(r=2)


def test_without_a_local_section_clients_train_one_epoch(tmp_path: Path) -> None:
    file = write_folder(tmp_path)
    file.write_text(BASE.replace("local:\n  steps: 5\n", ""))
    experiment = load_fake(file)
    assert (experiment.local.epochs, experiment.local.steps) == (1, None)
    again = tmp_path / "again.yaml"
    again.write_text(dump(experiment))
    assert load_fake(again) == experiment


def test_the_base_is_the_files_folder_or_the_given_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_fake(Path("experiment.yaml")).base == tmp_path.resolve()
    elsewhere = tmp_path / "run" / "config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(dump(load_fake(Path("experiment.yaml"), ["data.source=rows.jsonl"])))
    assert load_fake(elsewhere, base=tmp_path).data.source == "rows.jsonl"


def test_an_unused_option_is_not_written_and_every_other_one_is(tmp_path: Path) -> None:
    written = parse(dump(load_fake(write_folder(tmp_path), ["local.optimizer=sgd"]))).data
    assert not {"betas", "eps"} & set(written["local"])
    assert {"momentum", "nesterov", "clip", "lr", "steps"} <= set(written["local"])
    assert written["engine"] == {
        "kind": "local",
        "group_size": "auto",
        "threads": None,
        "device": "auto",
        "wire": False,
        "workers": 1,
    }


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lr=st.floats(min_value=1e-12, max_value=1e6, allow_nan=False),
    words=st.lists(_WORDS.filter(str.strip), max_size=3),
    column=_WORDS,
)
def test_any_number_and_any_text_survive_the_round_trip(
    lr: float, words: list[str], column: str, tmp_path: Path
) -> None:
    file = write_folder(tmp_path)
    experiment = load_fake(file, ["data.source=rows.jsonl", "local.lr=1"])
    local = experiment.local.model_copy(update={"lr": lr})
    data = experiment.data.model_copy(
        update={"where": {column: words or ["no"]}, "fields": {"text": column.strip() or "x"}}
    )
    experiment = experiment.model_copy(update={"local": local, "data": data})
    again = tmp_path / "again.yaml"
    again.write_text(dump(experiment), encoding="utf-8")
    assert load_fake(again) == experiment


def test_a_right_file_imports_nothing_heavy(tmp_path: Path) -> None:
    file = write_folder(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom mistakes_fakes import load_fake\nfrom fedloom.config.load import dump\n"
        f"dump(load_fake(Path({str(file)!r})))\n"
        "print(*sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
