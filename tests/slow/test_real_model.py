"""The quick start's real model and data, in small: it learns, and what it leaves behind loads with plain peft."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

from fedloom import api
from fedloom.models.load import pretrained_path

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart_in_small(tmp_path):
    small = ["federation.rounds=2", "federation.yardsticks=[]", "local.steps=2", "federation.clients_per_round=3"]
    run = api.run(api.load(EXAMPLES / "quickstart.yaml", small), tmp_path)
    assert run.manifest["after"]["eval_loss"] < run.manifest["before"]["eval_loss"] - 0.2
    assert (run.path / "report.html").stat().st_size < 2_000_000

    opened = api.open_run(run.path)
    prepared = opened.prepared
    prepared.binding.load(opened.progress.w)
    tokens = prepared.tokenizer(["What is AI?", "Tell me a joke about trains."], padding=True, return_tensors="pt")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        pretrained_path(prepared.experiment.model, prepared.experiment.base), dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(base, run.path / "adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(**tokens).logits, prepared.binding.model(**tokens).logits, rtol=0, atol=1e-5)
    assert json.loads((run.path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sentences_from_platforms_in_small(tmp_path):
    """A classifier whose head is learnt and averaged, on a real encoder; grouped, in bfloat16 with recomputation too."""
    small = ["federation.rounds=1", "data.limit=1500", "data.partition.clients=4", "federation.clients_per_round=4"]
    small += ["local.steps=3", "data.max_length=32"]
    run = api.run(api.load(EXAMPLES / "sentiment-across-platforms.yaml", [*small, "local.grouping=grouped"]), tmp_path)
    names = [t["name"] for t in run.manifest["trainable"]["tensors"]]
    assert sum("classifier.modules_to_save" in n for n in names) == 2 and sum("lora_" in n for n in names) > 50
    half = ["model.dtype=bf16", "model.gradient_checkpointing=true"]
    other = api.run(api.load(EXAMPLES / "sentiment-across-platforms.yaml", [*small, *half]), tmp_path)
    for ours in (run, other):
        assert abs(ours.manifest["after"]["eval_loss"] - ours.manifest["before"]["eval_loss"]) > 1e-4
    assert abs(run.manifest["after"]["eval_loss"] - other.manifest["after"]["eval_loss"]) < 0.1
