"""How an instruction becomes a prompt, and where in the text the answer stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedloom.errors import DataError

__all__ = ["TEMPLATES", "render", "resolve_template"]

Span = tuple[int, int]

# Taori et al. 2023, "Stanford Alpaca", train.py: the answer follows "### Response:" without a space or a new line.
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

# Chiang et al. 2023, FastChat's conversation template "vicuna_v1.1".
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: {question} ASSISTANT: "
)

_MARK = "\u241eanswer\u241e"


def _alpaca(fields: Mapping[str, str]) -> str:
    # Not str.format: braces in the user's text are text.
    if fields.get("input"):
        before, _, behind = _ALPACA_INPUT.partition("{input}")
        return before.replace("{instruction}", fields["instruction"]) + fields["input"] + behind
    return _ALPACA.replace("{instruction}", fields["instruction"])


def _vicuna(fields: Mapping[str, str]) -> str:
    return _VICUNA.replace("{question}", _question(fields, "\n"))


def _plain(fields: Mapping[str, str]) -> str:
    return _question(fields, "\n") + "\n"


_PROMPTS: Mapping[str, Callable[[Mapping[str, str]], str]] = {"alpaca": _alpaca, "vicuna": _vicuna, "plain": _plain}

TEMPLATES = ("auto", "chat", *_PROMPTS)


def resolve_template(template: str, tokenizer: Any) -> str:
    """The template that `auto` means: the tokenizer's own chat template if it has one, else alpaca.

    Raises DataError for `chat` with a tokenizer that has none.
    """
    has_chat = getattr(tokenizer, "chat_template", None) is not None
    if template == "auto":
        return "chat" if has_chat else "alpaca"
    if template == "chat" and not has_chat:
        raise DataError(
            "the tokenizer has no chat template",
            where="data.template",
            fix="Use alpaca, vicuna or plain, or a model tuned for conversation",
        )
    return template


def render(template: str, fields: Mapping[str, str], tokenizer: Any) -> tuple[str, list[Span]]:
    """The text of an example, and the spans `[start, end)` of its learnt characters.

    fields: `instruction`, `output`, and `input` ("" for none). The text ends with the answer, in a chat template with
    the end-of-turn token behind it, so that the model learns to stop. Raises DataError when the template drops the
    answer.
    """
    template = resolve_template(template, tokenizer)
    if template == "chat":
        return _chat(fields, tokenizer)
    prompt = _PROMPTS[template](fields)
    text = prompt + fields["output"]
    return text, [(len(prompt), len(text))]


def _chat(fields: Mapping[str, str], tokenizer: Any) -> tuple[str, list[Span]]:
    """The conversation, up to the end of the assistant's turn.

    A mark in the answer's place shows what stands before and behind it, whatever else the text repeats.
    """
    question, answer = _question(fields, "\n\n"), fields["output"]
    before, found, behind = _conversation(tokenizer, question, _MARK).partition(_MARK)
    text = _conversation(tokenizer, question, answer)
    for shown in (answer, answer.strip()):  # some templates strip a turn's text
        if found and _MARK not in behind and text == before + shown + behind:
            text = before + shown + _end_of_turn(behind, tokenizer)
            return text, [(len(before), len(text))]
    raise DataError(
        "the chat template drops or changes the answer",
        where="data.template",
        fix="Use alpaca, vicuna or plain, or mend the tokenizer's chat template",
    )


def _conversation(tokenizer: Any, question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
    except Exception as error:  # a template is a program of the model's author
        why = f"{type(error).__name__}: {error}"
        raise DataError("the tokenizer's chat template fails", where="data.template", why=why) from error


def _end_of_turn(behind: str, tokenizer: Any) -> str:
    """What follows an answer, up to the end-of-sequence token if it is there, without white space at its end."""
    end = tokenizer.eos_token
    if end and end in behind:
        return behind[: behind.index(end) + len(end)]
    return behind.rstrip()


def _question(fields: Mapping[str, str], separator: str) -> str:
    return separator.join(filter(None, (fields["instruction"], fields.get("input", ""))))
