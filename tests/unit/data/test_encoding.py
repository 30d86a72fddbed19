from __future__ import annotations

import numpy as np
import pytest
from data_tools import CHATML, LLAMA2, NO_ANSWER, NO_END, bert_tokenizer, causal_tokenizer, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.encode import ANSWER_CUT, ANSWER_ENDS, Dropped, Encoded, InstructionEncoder, TextEncoder
from fedloom.data.templates import render, resolve_template
from fedloom.errors import DataError

FIELDS = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
BARE = {"instruction": "Say hi.", "input": "", "output": "hi"}

# Copied from the published prompts, not from the code.
ALPACA_INPUT = """Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
Add.

### Input:
1 + 1

### Response:"""  # noqa: E501
ALPACA = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Say hi.

### Response:"""
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: Say hi. ASSISTANT: "
)


@pytest.mark.parametrize(
    ("template", "chat", "fields", "prompt", "answer"),
    [
        ("alpaca", None, FIELDS, ALPACA_INPUT, "2"),
        ("alpaca", None, BARE, ALPACA, "hi"),
        ("alpaca", None, {"instruction": "Say hi.", "output": "hi"}, ALPACA, "hi"),
        ("auto", None, BARE, ALPACA, "hi"),
        ("vicuna", None, BARE, VICUNA, "hi"),
        ("plain", None, FIELDS, "Add.\n1 + 1\n", "2"),
        ("auto", LLAMA2, FIELDS, "<s>[INST] Add.\n\n1 + 1 [/INST] ", "2 </s>"),
        ("chat", LLAMA2, BARE | {"output": " hi "}, "<s>[INST] Say hi. [/INST] ", "hi </s>"),
        ("chat", CHATML, BARE, "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n", "hi<|im_end|>"),
        ("chat", NO_END, BARE, "user: Say hi.\nassistant: ", "hi"),
    ],
)
def test_templates(template: str, chat: str | None, fields: dict[str, str], prompt: str, answer: str) -> None:
    text, spans = render(template, fields, causal_tokenizer(chat))
    assert text == prompt + answer
    assert [text[start:end] for start, end in spans] == [answer]


def test_braces_and_placeholders_in_the_users_text_are_text() -> None:
    fields = {"instruction": "Fill {input} and {x}.", "input": "{instruction}", "output": "{output}"}
    text, [(start, end)] = render("alpaca", fields, causal_tokenizer())
    assert text.count("{instruction}") == 1 and "Fill {input} and {x}." in text and text[start:end] == "{output}"


def test_the_answer_is_found_even_when_the_question_repeats_it() -> None:
    fields = {"instruction": "Say yes: yes", "input": "", "output": "yes"}
    text, [(start, _)] = render("chat", fields, causal_tokenizer(CHATML))
    assert start == text.rindex("yes")


def test_a_template_without_the_answer_is_refused() -> None:
    with pytest.raises(DataError, match="drops or changes the answer"):
        render("chat", BARE, causal_tokenizer(NO_ANSWER))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2.*drops or changes"):
        InstructionEncoder(
            causal_tokenizer(NO_END.replace("m['content']", "m['content'] | replace('long', '')")), "chat", 64
        )(rows(BARE, BARE | {"output": "long"}))


def test_chat_without_a_chat_template_is_refused() -> None:
    with pytest.raises(DataError, match="no chat template"):
        resolve_template("chat", causal_tokenizer())


def encode(tokenizer: object, fields: dict[str, str], template: str = "auto", max_length: int = 256) -> Encoded:
    [found] = InstructionEncoder(tokenizer, template, max_length)(rows(fields))
    assert isinstance(found, Encoded)
    return found


CASES = [
    (LLAMA2, {}, "auto", 1),
    (LLAMA2, {"adds_bos": True}, "auto", 1),
    (CHATML, {"eos": "<|im_end|>"}, "auto", 0),
    (CHATML, {"adds_bos": True}, "auto", 1),
    (CHATML, {"bos": "<|im_start|>", "eos": "<|im_end|>", "adds_bos": True}, "auto", 2),  # a turn begins with the BOS
    (NO_END, {"adds_bos": True}, "auto", 1),
    (None, {"adds_bos": True}, "alpaca", 1),
    (None, {"bos": None}, "vicuna", 0),
    (None, {}, "plain", 0),
]


@pytest.mark.parametrize(("chat", "options", "template", "begins"), CASES)
def test_one_bos_in_front_and_one_eos_at_the_end(chat: str | None, options: dict, template: str, begins: int) -> None:
    tokenizer = causal_tokenizer(chat, **options)
    found = encode(tokenizer, BARE, template)
    ids, learnt = found.columns["input_ids"], found.columns["learnt"]
    assert ids.dtype == np.int32 and learnt.dtype == np.uint8 and len(ids) == len(learnt)
    assert ids[-1] == tokenizer.eos_token_id and learnt[-1] == 1
    assert (ids[learnt == 1] == tokenizer.eos_token_id).sum() == 1
    if begins:
        assert ids[0] == tokenizer.bos_token_id and (ids == tokenizer.bos_token_id).sum() == begins
    said = tokenizer.decode(ids[learnt == 1]).strip()
    end = tokenizer.eos_token
    assert said.removesuffix(end).strip() in ("hi", "hi<|im_end|>")
    assert "Say" not in said and not found.truncated


def test_the_token_astride_the_border_is_the_answers() -> None:
    tokenizer = causal_tokenizer()
    found = encode(tokenizer, {"instruction": "What?", "input": "", "output": "capital"}, "vicuna")
    ids, learnt = found.columns["input_ids"], found.columns["learnt"]
    first = tokenizer.decode(ids[learnt == 1][:1])
    assert first.startswith(" ") and first.strip()  # " capital": the space is the prompt's


def test_truncation_cuts_the_right_and_drops_a_row_without_an_answer() -> None:
    tokenizer = causal_tokenizer()
    full = encode(tokenizer, BARE, "plain")
    ids, learnt = full.columns["input_ids"], full.columns["learnt"]
    first = int(learnt.argmax())
    cut = encode(tokenizer, BARE, "plain", first + 1)
    assert cut.truncated and cut.columns["input_ids"].tolist() == ids[: first + 1].tolist()
    assert InstructionEncoder(tokenizer, "plain", first)(rows(BARE)) == [Dropped(ANSWER_CUT)]


def test_an_answer_with_the_end_token_in_its_text_is_dropped() -> None:
    encoder = InstructionEncoder(causal_tokenizer(CHATML, eos="<|im_end|>"), "chat", 256)
    assert encoder(rows(BARE | {"output": "a<|im_end|>b"})) == [Dropped(ANSWER_ENDS)]


def test_tokenizers_that_cannot_be_used_are_refused() -> None:
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(DataError, match="Slow is not a fast tokenizer"):
        InstructionEncoder(slow, "plain", 8)
    with pytest.raises(DataError, match="is not a fast tokenizer"):
        TextEncoder(slow, 8, ["a"])
    with pytest.raises(DataError, match="no end-of-sequence token"):
        InstructionEncoder(causal_tokenizer(eos=None), "plain", 8)


WORDS = st.text(alphabet="ab é€😀\n<>|{}", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, st.sampled_from(["alpaca", "vicuna", "plain", "chat"]))
def test_all_and_only_the_answer_is_learnt(question: str, answer: str, template: str) -> None:
    tokenizer = causal_tokenizer(CHATML, eos="<|im_end|>", adds_bos=True)
    found = encode(tokenizer, {"instruction": question, "input": "", "output": answer}, template)
    ids, learnt = found.columns["input_ids"], found.columns["learnt"]
    said = tokenizer.decode(ids[learnt == 1], clean_up_tokenization_spaces=False)
    assert said.removesuffix("<|im_end|>").endswith(answer)
    assert len(said) <= len(answer) + len("<|im_end|>") + 1  # one straddling space at most
    assert np.flatnonzero(learnt).tolist() == list(range(int(learnt.argmax()), len(ids)))


def test_a_batch_is_encoded_as_its_rows_one_by_one() -> None:
    encoder = InstructionEncoder(causal_tokenizer(CHATML, adds_bos=True), "auto", 40)
    batch = rows(BARE, FIELDS, BARE | {"output": "x" * 90}, BARE | {"instruction": "y" * 200})
    together, alone = encoder(batch), [encoder([row])[0] for row in batch]
    assert isinstance(together[3], Dropped)
    for a, b in zip(together, alone, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Encoded) and isinstance(b, Encoded):
            assert a.truncated == b.truncated
            assert all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)


def test_texts_and_pairs_with_their_labels() -> None:
    encoder = TextEncoder(bert_tokenizer(), 6, ["no", "yes"])
    found = encoder(
        rows(
            {"text": "a b", "label": "yes"},
            {"text": "a b", "text_pair": "c", "label": "no"},
            {"text": "a b c d e f", "text_pair": "", "label": "no"},
            {"text": "a b c d", "text_pair": "e f", "label": "yes"},
        )
    )
    assert all(isinstance(example, Encoded) for example in found)
    ids = [example.columns["input_ids"].tolist() for example in found]
    assert ids[:3] == [[2, 4, 5, 3], [2, 4, 5, 3, 6, 3], [2, 4, 5, 6, 7, 3]]
    assert len(ids[3]) == 6
    assert found[1].columns["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert [example.columns["label_id"] for example in found] == [1, 0, 0, 1]
    assert [example.truncated for example in found] == [False, False, True, True]


def test_an_unknown_label_names_the_row_and_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"rows\.jsonl, line 2: the label 'sport' is not in the training set. Did you mean 'sports'"
    ):
        TextEncoder(bert_tokenizer(), 8, ["sports", "tech"])(
            rows({"text": "a", "label": "tech"}, {"text": "a", "label": "sport"})
        )
