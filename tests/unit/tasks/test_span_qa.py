"""Questions whose answer is a part of a text: where it is found, what is learnt, how it is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from project import LANGUAGE, experiment
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

from fedloom import api
from fedloom.config.schema import Data, IidPartition, LoraAdapter
from fedloom.data.encode import Dropped
from fedloom.data.fields import Row, map_fields
from fedloom.data.sources import Source
from fedloom.data.spans import ANSWER_CUT, NO_ROOM, NOT_THERE, SpanEncoder, characters, references
from fedloom.data.table import build_table
from fedloom.errors import DataError
from fedloom.evaluation.judge import measure
from fedloom.models.adapters import attach
from fedloom.models.binding import Binding
from fedloom.tasks import TASKS
from fedloom.tasks.span_qa import SpanQA, _best_spans, exact_match, normalise, token_f1
from fedloom.vector.bank import Bank

INFO = TASKS["span_qa"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "who", "is", "old", "in", "the", "café", "no", "one", ".", "?"]
WORDS += [f"w{i}" for i in range(20)]


def tokenizer() -> Any:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                      sep_token="[SEP]", model_input_names=names)  # fmt: skip


def encode(*rows: dict[str, Any], max_length: int = 32) -> list[Any]:
    mapped = [
        Row(
            map_fields(Row(r, ""), {}, INFO.required_fields, INFO.optional_fields, INFO.list_fields), f"line {i + 1}", i
        )
        for i, r in enumerate(rows)
    ]
    return SpanEncoder(tokenizer(), max_length)(mapped)


def table(rows: list[dict[str, Any]], folder: Path, max_length: int = 32) -> Any:
    source = Source("rows", ("question", "context", "answer"), lambda: [Row(r, "", i) for i, r in enumerate(rows)],
                    lambda: "", {})  # fmt: skip
    task = task_of(max_length)
    wanted = ({}, INFO.required_fields, INFO.optional_fields, INFO.list_fields)
    return build_table(source, task.encoder(), map=lambda row: map_fields(row, *wanted), key=str(rows), cache=folder)


def task_of(max_length: int = 32) -> SpanQA:
    data = Data(source="x", max_length=max_length, partition=IidPartition(kind="iid", clients=1))
    return SpanQA(tokenizer(), data, [])


CAFE = {"question": "where is the café ?", "context": "the café is in w3 w4 , no ?", "answer": "w3 w4"}


# --- where the answer is ---


def test_an_answer_by_its_characters() -> None:
    """[CLS] where is the café ? [SEP] the café is in w3 w4 , no ? [SEP]: the answer is tokens 11 and 12, characters 15 to 20."""
    (found,) = encode(CAFE | {"answer_start": 15})
    columns = found.columns
    assert (columns["start"], columns["end"], found.truncated) == (11, 12, False)
    assert columns["places"].reshape(-1, 2)[[0, 6, 7, 11, 12, 16]].tolist() == [[-1, -1], [-1, -1], [0, 3], [15, 17],
                                                                               [18, 20], [-1, -1]]  # fmt: skip
    assert columns["token_type_ids"].tolist() == [0] * 7 + [1] * 10
    assert characters(columns["context"]) == CAFE["context"] and references(columns["answers"]) == ["w3 w4"]


@pytest.mark.parametrize(
    ("answer", "more", "span"),
    [
        ("w3 w4", {}, (11, 12)),
        (" w4 ", {}, (12, 12)),
        (["w4", "w3 w4"], {"answer_start": [18, 15]}, (12, 12)),
        ({"text": ["in", "w3"], "answer_start": [12, 15]}, {}, (10, 10)),
        ("is", {"answer_start": "9"}, (9, 9)),
        ("caf", {}, (8, 8)),
        ("", {}, (0, 0)),
        (None, {}, (0, 0)),
        ([], {}, (0, 0)),
        ({"text": [], "answer_start": []}, {}, (0, 0)),
    ],
)
def test_every_way_to_give_an_answer(answer: Any, more: dict[str, Any], span: tuple[int, int]) -> None:
    (found,) = encode(CAFE | {"answer": answer} | more)
    assert (found.columns["start"], found.columns["end"]) == span


def test_the_first_of_equal_answers_unless_it_is_given() -> None:
    row = {"question": "who ?", "context": "w1 w2 w1", "answer": "w1"}
    assert [encode(row | more)[0].columns["start"] for more in ({}, {"answer_start": 6})] == [4, 6]


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path: Path) -> None:
    long = {"question": "who ?", "context": " ".join(f"w{i}" for i in range(12)), "answer": "w5 w6"}
    # [CLS] who ? [SEP] w0 ... w5 [SEP]: with 11 tokens w6 is cut off, with 12 it is there.
    assert encode(long, max_length=11) == [Dropped(ANSWER_CUT)]
    (found,) = encode(long, max_length=12)
    assert (found.columns["start"], found.columns["end"], found.truncated) == (9, 10, True)
    assert encode(long | {"answer": "w19"}) == [Dropped(NOT_THERE)]
    assert encode(long | {"question": "who " * 20}, max_length=12) == [Dropped(NO_ROOM)]
    built = table([long, long | {"answer": "w1"}, long | {"answer": "nothing"}], tmp_path, 11)
    assert len(built) == 1 and built.dropped == {ANSWER_CUT: 1, NOT_THERE: 1}


@pytest.mark.parametrize(
    ("answer", "more", "said"),
    [
        ("w3", {"answer_start": 16}, "line 1: at character 16 of the context stands '3 ', and not the answer 'w3'"),
        ("w3", {"answer_start": "x"}, "answer_start is 'x', and not a number"),
        (["w3", "w4"], {"answer_start": [15]}, "2 answers with 1 answer_start"),
        ({"words": []}, {}, "the answer has no `text`"),
    ],
)
def test_a_wrong_answer_names_the_row(answer: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        encode(CAFE | {"answer": answer} | more)


def test_a_batch_is_encoded_as_its_rows_one_by_one() -> None:
    rows = [CAFE, CAFE | {"question": "who " * 40}, CAFE | {"answer": ""}, CAFE | {"answer": "w19"}]
    for together, (alone,) in zip(encode(*rows), [encode(row) for row in rows], strict=True):
        assert type(together) is type(alone)
        if not isinstance(alone, Dropped):
            assert all(np.array_equal(together.columns[k], alone.columns[k]) for k in alone.columns)


# --- SQuAD's figures ---


@pytest.mark.parametrize(
    ("said", "answer", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel  tower", 1, 1),
        ("an apple, a day", "apple day", 1, 1),
        ("in the theatre", "in theatre", 1, 1),
        ("U.S.A.", "usa", 1, 1),
        ("the red old house", "old house", 0, 0.8),  # 2 of 3 words, 2 of 2: 2 * 2 / (3 + 2)
        ("a b b", "b b c", 0, 0.8),  # b twice in both: precision 2 / 2 (a is an article), recall 2 / 3
        ("x", "y", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("", "x", 0, 0),
        ("x", "", 0, 0),
    ],
)
def test_exact_match_and_f1(said: str, answer: str, exact: float, f1: float) -> None:
    assert exact_match(said, answer) == exact and token_f1(said, answer) == pytest.approx(f1)
    assert token_f1(answer, said) == pytest.approx(f1)


def test_normalised_text() -> None:
    assert normalise("  The “Cat”, an  A-team\tthe. ") == "“cat” ateam"  # SQuAD's punctuation is ASCII's


# --- learning and judging ---


class Fixed(torch.nn.Module):
    """Says the same places for every row."""

    def __init__(self, start: list[int], end: list[int]) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, input_ids, **_):
        logits = torch.zeros(2, *input_ids.shape)
        for i, (s, e) in enumerate(zip(self.start, self.end, strict=True)):
            logits[0, i, s], logits[1, i, e] = 9.0, 9.0
        return logits[0], logits[1]


def judged(rows: list[dict[str, Any]], start: list[int], end: list[int], folder: Path) -> tuple[Any, dict[str, float]]:
    task = task_of()
    batch = task.collate(table(rows, folder), [np.arange(len(rows))])
    measured = {k: v.numpy() for k, v in task.measure(Fixed(start, end), batch).items()}
    return measured, task.metrics(measured)


def test_the_words_of_the_text_are_judged_by_the_best_answer(tmp_path: Path) -> None:
    """ "w3 w4 ," against "w4" and "w3 w4": F1 2 / 3 and 1; the comma does not count. "in w3" against "w3": 2 * 1 / 3."""
    rows = [CAFE | {"answer": ["w4", "w3 w4"]}, CAFE | {"answer": "w3"}]
    measured, metrics = judged(rows, [11, 10], [13, 11], tmp_path)
    assert measured["exact_match"].tolist() == [1, 0] and measured["f1"].tolist() == pytest.approx([1, 2 / 3])
    assert metrics["exact_match"] == 0.5 and metrics["f1"] == pytest.approx(5 / 6)


def test_a_span_is_in_the_context_and_not_backwards(tmp_path: Path) -> None:
    """The model points into the question, and behind the start: what remains is the best that an answer can be."""
    task, rows = task_of(), [CAFE, CAFE]
    batch = task.collate(table(rows, tmp_path), [np.arange(2)])
    model = Fixed([2, 12], [11, 11])  # a start in the question; an end before the start
    spans = _best_spans(task._logits(model, batch), batch)
    assert spans[0, 1] == 11 and 7 <= spans[0, 0] <= 11
    assert 7 <= spans[1, 0] <= spans[1, 1] and (spans[1, 0] == 12 or spans[1, 1] == 11)
    # No row is without an answer, so none may be said to be.
    assert (_best_spans(task._logits(Fixed([0, 0], [0, 0]), batch), batch)[:, 0] >= 7).all()


def test_no_answer_is_an_answer(tmp_path: Path) -> None:
    rows = [CAFE | {"answer": []}, CAFE, CAFE | {"answer": None}]
    measured, _ = judged(rows, [0, 0, 11], [0, 0, 12], tmp_path)
    assert measured["exact_match"].tolist() == [1, 0, 0] and measured["f1"].tolist() == [1, 0, 0]


def test_half_an_answer_is_none(tmp_path: Path) -> None:
    """The first token says "no answer", and only with itself."""
    task = task_of()
    batch = task.collate(table([CAFE | {"answer": ""}], tmp_path), [np.arange(1)])
    assert _best_spans(task._logits(Fixed([0], [11]), batch), batch).tolist() in [[[7, 11]], [[0, 0]]]


def test_loss_by_hand(tmp_path: Path) -> None:
    """A flat model over n tokens loses log n at each end; padding has no chance, and padding rows lose nothing."""
    task = task_of()
    rows = [CAFE, {"question": "who ?", "context": "w1 w2", "answer": "w2"}]
    batch = task.collate(table(rows, tmp_path), [np.array([0, 1]), np.array([1])])
    assert batch.targets.tolist() == [[11, 12], [5, 5], [5, 5], [-100, -100]] and batch.items == [2, 1]
    flat = Fixed([], [])
    assert task.losses(flat, batch).tolist() == pytest.approx([np.log(17) + np.log(7), np.log(7)], rel=1e-6)


def _bert() -> Binding:
    torch.manual_seed(7)
    config = tf.BertConfig(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=64, initializer_range=0.2)  # fmt: skip
    model = tf.BertForQuestionAnswering(config).requires_grad_(False).eval()
    adapted = attach(model, LoraAdapter(r=4), peft_task=SpanQA.peft_task, heads=SpanQA.heads, seed=0)
    binding = Binding(adapted)
    binding.home.values.add_(torch.randn_like(binding.home.values) * 0.05)
    return binding


def squad(n: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = []
    for i in range(n):
        words = [f"w{j}" for j in random.permutation(20)[: random.integers(3, 9)]]
        at = int(random.integers(len(words)))
        answer = "" if i % 7 == 3 else words[at]
        rows.append({"question": "where is " + words[at] + " ?", "context": " ".join(words), "answer": answer})
    return rows


def test_grouped_is_in_place_and_is_transformers_own_loss(tmp_path: Path) -> None:
    built, task, binding = table(squad(12), tmp_path), task_of(), _bert()
    assert not binding.ungroupable and any("qa_outputs" in name for name, _ in binding.model.named_parameters())
    clients = [np.array([0, 1, 2]), np.array([3, 4, 5, 6, 7]), np.array([8])]
    w = binding.home.values[0].clone()
    bank = Bank.of(torch.stack([w + 0.1 * k for k in range(3)]))
    with binding.group(bank):
        losses = task.losses(binding.model, task.collate(built, clients))
        losses.sum().backward()
    for k, rows in enumerate(clients):
        binding.load(bank.values[k])
        binding.home.grads.zero_()
        batch = task.collate(built, [rows])
        loss = task.losses(binding.model, batch)
        loss.sum().backward()
        torch.testing.assert_close(loss[0], losses[k], rtol=0, atol=1e-5)
        torch.testing.assert_close(binding.home.grads[0], bank.grads[k], rtol=0, atol=1e-5)
        for row in rows:  # one by one there is no padding, and transformers' own loss is the same
            one = task.collate(built, [np.array([row])])
            start, end = one.targets[0]
            out = binding.model(**one.inputs)
            own = (F.cross_entropy(out.start_logits, start[None]) + F.cross_entropy(out.end_logits, end[None])) / 2
            torch.testing.assert_close(task.losses(binding.model, one)[0], own)


def test_batches_change_no_figure(tmp_path: Path) -> None:
    built, task, binding = table(squad(12), tmp_path), task_of(), _bert()
    w = binding.home.values[0].clone()
    one, many = (measure(binding, task, built, np.arange(12), w, size) for size in (1, 5))
    for name in one:
        np.testing.assert_allclose(one[name], many[name], atol=1e-5)


OWN_QA = """

def reader(labels):
    torch.manual_seed(3)
    return tf.BertForQuestionAnswering(tf.BertConfig(**SHAPE)), tokenizer()
"""


def test_a_run_learns_to_answer(tmp_path: Path) -> None:
    """The answer is always the word behind w0, in the layout of SQuAD's own files."""
    random = np.random.default_rng(1)
    rows = []
    for i in range(160):
        words = [f"w{j}" for j in random.integers(1, 60, 5)]
        at = int(random.integers(5))
        context = " ".join([*words[:at], "w0", *words[at:]])
        start = context.index("w0") + 3
        rows.append({"id": i, "question": "w7", "context": context,
                     "answers": {"text": [words[at]], "answer_start": [start]}})  # fmt: skip
    tmp_path.joinpath("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"source": "rows.jsonl", "fields": {"answer": "answers"}, "max_length": 24,
            "partition": {"kind": "iid", "clients": 4}}  # fmt: skip
    config = LANGUAGE | {"model": {"path": "own:reader", "task": "span_qa"}, "data": data}
    file = experiment(tmp_path, LANGUAGE)  # writes own.py
    assert file.name == "tiny"
    with (tmp_path / "own.py").open("a") as own:
        own.write(OWN_QA)
    (tmp_path / "qa.yaml").write_text(
        json.dumps(config | {"federation": {"rounds": 6}, "evaluation": {"metric": "eval_f1"}})
    )
    run = api.run(api.load(tmp_path / "qa.yaml"), out=tmp_path / "runs")
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["eval_loss"] < records[0]["eval_loss"]
    assert 0 <= records[-1]["eval_exact_match"] <= records[-1]["eval_f1"] <= 1
