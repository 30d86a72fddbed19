"""Answers that a model writes: how they are read, and that batches and restarts change none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from project import CLASSIFY, LANGUAGE, experiment
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from fedloom import algorithms, api
from fedloom.cli.app import app
from fedloom.config.schema import LoraAdapter
from fedloom.errors import ConfigError, DataError, ModelError, UsageError
from fedloom.evaluation import answers
from fedloom.evaluation.answers import agrees, complete, last_number, marked_number, that_writes, written
from fedloom.local.prepare import prepare
from fedloom.models.adapters import attach


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("3 + 4 = 7, so #### 1,234", 1234),
        ("#### -5", -5),
        ("#### −5", -5),
        ("#### 3.50", 3.5),
        ("#### .5", 0.5),
        ("#### 3/4", Fraction(3, 4)),
        ("### 18</s>", 18),
        ("#18", 18),
        ("#### $1,234,567.25 in all", Fraction(123456725, 100)),
        ("#### -$20", -20),
        ("#### 50%", 50),
        ("#### 18.", 18),
        ("### The answer is 18 dollars, not 19", 18),
        ("#### 10-5", 10),
        ("#### 12,34", 12),
        ("#### 007", 7),
        ("#### 4\n#### 5", 5),
        ("#### 4\nThen 5.", 4),
        ("#### 4\n####", None),
        ("####\n4", None),
        ("#### none", None),
        ("the answer is 18", None),
        ("", None),
    ],
)
def test_the_number_behind_the_last_mark(completion: str, number: Any) -> None:
    assert marked_number(completion) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("8.0", 8), ("( 3 + 5 ) = 8", 8), ("from 5 to -7.", -7), ("7 apples and 1,000 pears", 1000), ("none", None)],
)
def test_the_last_number(text: str, number: Any) -> None:
    assert last_number(text) == number


def test_a_number_without_end_is_read_too() -> None:
    """Python refuses integers of more than 4300 digits, and a model may write them."""
    assert marked_number("#### " + "9" * 6000) is not None and last_number("1." + "0" * 6000) is not None


@pytest.mark.parametrize(
    ("kind", "completion", "reference", "right"),
    [
        ("number", "so #### 18.0", "Half of 36. #### 18", True),
        ("number", "18", "#### 18", False),  # no mark
        ("number", "#### 18", "18", True),
        ("last_number", "it is 8", "8.0", True),
        ("last_number", "it is 8, or 9", "8", False),
        ("text", "The Cat!", "cat", True),
        ("text", "a dog", "cat", False),
    ],
)
def test_what_agrees(kind: str, completion: str, reference: str, right: bool) -> None:
    assert agrees(kind, completion, reference) is right


def test_a_reference_without_a_number_names_its_row() -> None:
    with pytest.raises(DataError, match=r"row 3: the answer holds no number. Set evaluation.generate.answer: text"):
        agrees("number", "#### 1", "yes", "row 3")


# --- writing ---


def tokenizer() -> Any:
    """A word a token, for a model of 96."""
    words = ["<pad>", "<s>", "</s>", "#"] + [f"w{i}" for i in range(92)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="<s>")


def llama(checkpointing: bool = False) -> Any:
    torch.manual_seed(5)
    config = tf.LlamaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, intermediate_size=64, initializer_range=0.4)  # fmt: skip
    model = tf.LlamaForCausalLM(config).requires_grad_(False).eval()
    model.config.use_cache = False
    # What a model's folder may ask for must not play a part.
    model.generation_config = tf.GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, top_k=3)
    if checkpointing:
        from fedloom.models.load import _enable_checkpointing

        _enable_checkpointing(model)
    return attach(model, LoraAdapter(r=4), peft_task="CAUSAL_LM", heads=(), seed=0)


PROMPTS = [[1, 10, 11], [1, 20], [1, 30, 31, 32, 33, 34, 35], [1, 40, 41, 42], [50]]


def by_hand(model: Any, prompt: list[int], most: int) -> list[int]:
    """The most likely next token, over and over, with neither padding nor cache."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] != 2):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_batches_write_what_one_by_one_is_written(checkpointing: bool) -> None:
    model, own = llama(checkpointing), tokenizer()
    expected = [own.decode(by_hand(model, prompt, 9), skip_special_tokens=True) for prompt in PROMPTS]
    assert len(set(expected)) == len(expected)
    training = [m.training for m in model.modules()]
    for size in (1, 2, 5):
        assert complete(model, own, PROMPTS, 9, size) == expected
    assert [m.training for m in model.modules()] == training


def test_writing_stops_at_the_end() -> None:
    model, own = llama(), tokenizer()
    ids = by_hand(model, PROMPTS[0], 9)
    with torch.no_grad():  # the third token written becomes the end-of-sequence token
        head = model.get_output_embeddings().weight
        head[2], head[ids[2]] = head[ids[2]].clone(), head[2].clone()
    said = complete(model, own, [PROMPTS[0]], 9, 1)[0]
    assert 0 < len(said.split()) <= 2


def test_a_model_that_cannot_write_is_refused() -> None:
    with pytest.raises(ModelError, match="a Linear has no `generate`"):
        complete(torch.nn.Linear(2, 2), tokenizer(), PROMPTS, 4, 2)


# --- in a run ---

# Questions hold a # and a number; answers are the number behind a mark.
OWN_SUMS = """

def sums():
    r = random.Random(0)
    for i in range(120):
        a = r.randrange(3)
        yield {"question": f"# 7 w{a}", "answer": f"w{a} #### {a + 1}", "cut": "w1 " * 30 + f"#### {a}"}


def adder(labels):
    torch.manual_seed(3)
    words = WORDS + ["#", "##", "###", "####"] + [str(i) for i in range(10)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    shape = SHAPE | {"vocab_size": len(words), "hidden_size": 32}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**shape, num_key_value_heads=2)), tok
"""

SUMS = LANGUAGE | {
    "model": {"path": "own:adder", "task": "causal_lm"},
    "adapter": {"kind": "full"},
    "data": LANGUAGE["data"] | {"source": "own:sums", "partition": {"kind": "iid", "clients": 4}},
    "federation": {"rounds": 6},
    "local": {"optimizer": "adamw", "lr": 0.01, "steps": 10, "batch_size": 8},
    "evaluation": {"generate": {"rows": 8, "max_new_tokens": 6}, "metric": "eval_exact_match"},
}


def sums(folder: Path, **changes: Any) -> Any:
    experiment(folder, LANGUAGE)
    with (folder / "own.py").open("a") as own:
        own.write(OWN_SUMS)
    config = json.loads(json.dumps(SUMS))
    for key, value in changes.items():
        config[key] = config[key] | value
    (folder / "sums.yaml").write_text(json.dumps(config))
    return api.load(folder / "sums.yaml")


def test_a_run_learns_to_write_answers(tmp_path: Path) -> None:
    run = api.run(sums(tmp_path), out=tmp_path / "runs")
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["eval_exact_match"] == 1.0 and records[-1]["eval_loss"] < 1
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["before"]["eval_exact_match"] == 0.0
    again = CliRunner().invoke(app, ["eval", str(run.path), "--json"])
    judged = json.loads(again.output)["judged"]
    assert judged[0]["on"] == "held out" and judged[0]["eval_exact_match"] == 1.0
    some = CliRunner().invoke(app, ["eval", str(run.path), "--generate", "3", "--json", "--source", "own:sums"])
    assert json.loads(some.output)["judged"][0]["eval_exact_match"] == 1.0


def test_only_the_completion_is_read_and_the_same_rows_are_drawn(tmp_path: Path) -> None:
    """An untrained model writes no mark; the prompt has one, and the number 7, and that is no answer."""
    loaded = sums(tmp_path)
    prepared = prepare(loaded, algorithms.build({"name": "fedavg"}, tmp_path))
    rows = prepared.held_out
    first = written(prepared, prepared.table, rows, prepared.initial)
    assert first == {"exact_match": 0.0} == written(prepared, prepared.table, rows, prepared.initial)
    assert written(that_writes(prepared, 2), prepared.table, rows, prepared.initial) == first
    nothing = prepared.experiment.evaluation.model_copy(update={"generate": None})
    off = prepared.experiment.model_copy(update={"evaluation": nothing})
    assert written(replace(prepared, experiment=off), prepared.table, rows, prepared.initial) == {}


def test_answers_that_were_cut_off_are_not_asked_for(tmp_path: Path) -> None:
    fields = {"instruction": "question", "output": "cut"}
    prepared = prepare(
        sums(tmp_path, data={"fields": fields, "max_length": 20}), algorithms.build({"name": "fedavg"}, tmp_path)
    )
    with pytest.raises(DataError, match=r"every held-out answer was cut off\. Raise data.max_length"):
        written(prepared, prepared.table, prepared.held_out, prepared.initial)


def test_answers_without_a_number_are_told_at_once_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mixed.jsonl").write_text(
        "".join(
            json.dumps({"question": f"w{i % 9}", "answer": "## ##" if i % 3 else f"## #### {i % 9}"}) + "\n"
            for i in range(120)
        )
    )
    loaded = sums(tmp_path, data={"source": "mixed.jsonl"})
    prepared = prepare(loaded, algorithms.build({"name": "fedavg"}, tmp_path))
    monkeypatch.setattr(answers, "complete", lambda *_: pytest.fail("the model wrote"))
    with pytest.raises(DataError) as raised:
        written(prepared, prepared.table, prepared.held_out, prepared.initial)
    found = re.fullmatch(
        r"((?:row \d+(?:, )?)+): (\d) of 8 answers hold no number\. Set evaluation\.generate\.answer: text, or .*",
        str(raised.value),
    )
    assert found, raised.value
    rows = [int(number) for number in re.findall(r"\d+", found[1])]
    assert len(rows) == int(found[2]) > 1 and all((row - 1) % 3 for row in rows)


def test_what_cannot_write_is_refused_before_it_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="classification makes no prompts, so no answer is generated"):
        experiment(tmp_path, CLASSIFY, evaluation={"generate": {"rows": 4}})
    with pytest.raises(ConfigError, match=r"data.held_out is 0"):
        sums(tmp_path, data={"held_out": 0})
    with pytest.raises(ConfigError, match="does not measure 'eval_exact_match'"):
        experiment(tmp_path, LANGUAGE, evaluation={"metric": "eval_exact_match"})
    prepared = prepare(experiment(tmp_path, CLASSIFY), algorithms.build({"name": "fedavg"}, tmp_path))
    with pytest.raises(UsageError, match="classification makes no prompts"):
        that_writes(prepared, 3)
