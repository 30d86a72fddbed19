"""The commands of docs/backprop-free.md run, and say what it says."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.app import app

ROOT = Path(__file__).parents[2]
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / "backprop-free.md").read_text(), re.S | re.M)
COMMANDS = [line for language, block in FENCES if not language for line in block.splitlines() if "pytest" not in line]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command)
    assert program == ".venv/bin/fedloom"
    out = ["--out", str(tmp_path)] if words[0] == "run" else []
    result = CliRunner().invoke(app, [*words, *out])
    assert result.exit_code == 0, result.output
    if out:
        (metrics,) = tmp_path.glob("*/metrics.jsonl")
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert records[-1]["eval_loss"] < records[0]["eval_loss"]
    if words == ["run", "examples/fwdllm-news.yaml"]:
        assert records[-1]["eval_accuracy"] > records[0]["eval_accuracy"] + 0.2
        learnt = 4 * (384 * 5 + 5)  # the head
        assert all(r["bytes_up"] < 0.5 * learnt * r["clients"] for r in records[1:]), (
            "derivatives, not vectors, went up"
        )


def test_the_page_runs_the_example():
    assert ".venv/bin/fedloom run examples/fwdllm-news.yaml" in COMMANDS
