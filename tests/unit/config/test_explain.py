"""Every option is explained, and the JSON Schema says the same as the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedloom.config.document import parse
from fedloom.config.explain import describe, explain, json_schema
from fedloom.config.keys import options, sections
from fedloom.config.schema import Experiment
from fedloom.config.translate import OTHER_NAMES
from fedloom.errors import UsageError

KEYS = list(dict.fromkeys(option.key for option in options()))
EXAMPLES = Path(__file__).parents[3] / "examples"
EXPERIMENTS = sorted(
    path for path in EXAMPLES.glob("*.yaml") if "\nbase:" not in path.read_text()
)  # the others are sweeps


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_explained(key: str) -> None:
    text = explain(key)
    assert text.splitlines()[0] == key
    assert "type: " in text
    assert any(word in text for word in ("default: ", "required", "may be left out"))
    assert not any(word in text for word in ("Annotated", "typing", "NoneType", "Literal[", "FieldInfo"))


@pytest.mark.parametrize("option", options(), ids=lambda option: f"{option.key} {option.kind or ''}")
def test_every_option_has_a_description_but_the_names_of_kinds(option: Any) -> None:
    assert option.field.description or option.key.endswith(".kind")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("local.lr", ["Learning rate.", "a number above 0", "default: 0.001"]),
        ("local.optimizer", ["one of sgd, adam, adamw", "default: adamw"]),
        ("local.clip", ["a number above 0, or null"]),
        ("local.betas", ["a list of 2 numbers of at least 0 and below 1"]),
        ("data.partition.alpha", ["[partition: dirichlet]", "Concentration", "required"]),
        ("data.partition.clients", ["[partition: iid, dirichlet, quantity]", "[partition: column]", "or null"]),
        ("data.partition", ["kinds:", "dirichlet", "min_rows", "one of iid, dirichlet, column, quantity, given"]),
        ("adapter.kind", ["one of lora, bottleneck, bitfit, prompt, full; default: lora"]),
        ("engine.group_size", ["a whole number of at least 1 or `auto`"]),
        ("federation.early_stopping", ["a section, or null", "patience"]),
        ("alpha", ["adapter.alpha", "data.partition.alpha"]),
        ("", ["One federation, as a file.", "name", "checkpoints"]),
    ],
)
def test_what_an_explanation_says(key: str, words: list[str]) -> None:
    text = explain(key)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("key", "words"), [("local.lrr", "'local.lr'"), ("partition.alhpa", "data.partition.alpha"), ("zzzzzz", "--all")]
)
def test_an_unknown_key_gets_the_nearest(key: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        explain(key)


def test_an_explanation_as_data() -> None:
    assert describe("local.optimizer") == [
        {
            "key": "local.optimizer",
            "kind": None,
            "description": "The local optimizer.",
            "type": "one of sgd, adam, adamw",
            "required": False,
            "default": "adamw",
            "choices": ["sgd", "adam", "adamw"],
        }
    ]
    assert [entry["kind"] for entry in describe("data.partition.min_rows")] == ["dirichlet", "quantity"]


def test_the_schema_has_the_models_keys() -> None:
    schema = json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert list(schema["properties"]) == list(Experiment.model_fields)
    for option in options():
        for section in sections(option.field.annotation).values():
            part = schema["$defs"][section.__name__]
            assert set(part["properties"]) == set(section.model_fields)
            assert part["additionalProperties"] is False


def test_the_schema_allows_the_shorthands() -> None:
    properties = json_schema()["properties"]
    words = {name: part["anyOf"][0].get("enum") for name, part in properties.items() if "anyOf" in part}
    assert words == {
        "adapter": ["lora", "bottleneck", "bitfit", "prompt", "full"], "algorithm": None, "engine": ["local", "ray", "remote"],
        "devices": ["alike", "generated"], "layers": ["all", "priority", "random", "cyclic", "split"],
    }  # fmt: skip
    schedule = json_schema()["$defs"]["Local"]["properties"]["schedule"]
    assert schedule["anyOf"][0] == {"enum": ["constant", "linear", "cosine"]}


@pytest.mark.parametrize("other", OTHER_NAMES, ids="called {}".format)
def test_other_systems_names_lead_to_keys_of_ours(other: str) -> None:
    assert OTHER_NAMES[other] in KEYS
    assert other not in KEYS


@pytest.mark.parametrize("example", EXPERIMENTS, ids=lambda path: path.name)
def test_every_example_uses_only_keys_of_the_schema(example: Path) -> None:
    document = parse(example.read_text())
    assert not document.mistakes
    free = ("algorithm", "data.where", "data.fields")
    used = [".".join(map(str, place)) for place in document.lines if place and isinstance(place[-1], str)]
    assert [key for key in used if key not in KEYS and not key.startswith(free)] == []


def test_a_key_whose_default_differs_between_kinds_has_a_line_for_each():
    lines = [line.split(maxsplit=1) for line in explain("layers").splitlines() if line.split()[:1] == ["count"]]
    number = "a whole number of at least 1"
    assert lines == [
        ["count", f"{number}; default: 8 (random, cyclic)"],
        ["count", f"{number}, or null; default: null (split)"],
    ]
    assert "default: local" in explain("engine")  # where there is but one kind
