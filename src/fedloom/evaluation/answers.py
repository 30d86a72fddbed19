"""Answers that a language model writes itself, and how they are read: the exact-match figure of GSM8K and its kind.

GSM8K (Cobbe et al. 2021) ends an answer with `#### 18`: the number behind the last # counts, and only what the model wrote is read,
never the prompt. `fedloom.config.datasets` says how the answers of known data sets are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.config.datasets import KNOWN
from fedloom.config.schema import Generate
from fedloom.data.table import ROW, Table
from fedloom.errors import DataError, ModelError, UsageError
from fedloom.local.prepare import Prepared
from fedloom.tasks.base import Rows
from fedloom.tasks.span_qa import exact_match
from fedloom.vector.streams import stream

__all__ = ["agrees", "complete", "last_number", "marked_number", "that_writes", "written"]

MOST_NAMED = 8  # rows, in an error

# A sign is one only where no word or bracket ends before it; 1,234 is one number, and 3/4 too. Python reads no endless integers.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-−]\$?)?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,300}|(?=\.[0-9]))"
    r"(?P<rest>\.[0-9]{1,300}|/[1-9][0-9]{0,300})?"
)


def marked_number(completion: str) -> Fraction | None:
    """The first number behind the last #, on the same line; None where there is no # or no number."""
    if "#" not in completion:
        return None
    numbers = _numbers(completion.rpartition("#")[2].split("\n", 1)[0])
    return numbers[0] if numbers else None


def last_number(completion: str) -> Fraction | None:
    """The last number of a text; None where there is none."""
    numbers = _numbers(completion)
    return numbers[-1] if numbers else None


def agrees(kind: str, completion: str, reference: str, where: str = "") -> bool:
    """Whether what the model wrote has the reference's answer: the same `number`, `last_number` or `text`.

    Raises DataError for a reference without a number, where numbers are compared.
    """
    if kind == "text":
        return bool(exact_match(completion, reference))
    check_references(kind, [reference], [where])
    right = marked_number(reference) if kind == "number" else None
    right = last_number(reference) if right is None else right
    return right == (marked_number if kind == "number" else last_number)(completion)


def check_references(kind: str, references: Sequence[str], names: Sequence[str]) -> None:
    """Raise one DataError for all references without a number, where numbers are compared; names: what to call each."""
    missing = [n for n, text in zip(names, references, strict=True) if kind != "text" and last_number(text) is None]
    if missing:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        holds = "the answer holds" if len(missing) == 1 else f"{len(missing)} of {len(references)} answers hold"
        fix = "Set evaluation.generate.answer: text, or leave out such rows with data.where"
        raise DataError(f"{holds} no number", where=", ".join(missing[:MOST_NAMED]) + more, fix=fix)


def written(prepared: Prepared, table: Table, rows: Rows, w: Tensor) -> dict[str, float]:
    """`exact_match` of the model with vector `w` on some of the rows; nothing where the experiment does not ask for it.

    Which rows is drawn once from the seed, of those whose answer was not cut off. Raises DataError when there is none or,
    before the model writes anything, when some have no number to compare with; ModelError for a model that cannot write.
    """
    options = prepared.experiment.evaluation.generate
    if options is None or not len(rows):
        return {}
    ids, offsets = table.ragged("input_ids")
    learnt = table.ragged("learnt")[0]
    whole = [row for row in rows if ids[offsets[row + 1] - 1] == prepared.tokenizer.eos_token_id]
    if not whole:
        raise DataError("every held-out answer was cut off", where="evaluation.generate", fix="Raise data.max_length")
    drawn = stream(prepared.experiment.seed, "generate").permutation(len(whole))[: options.rows]
    prompts, references, names = [], [], []
    for row in (whole[i] for i in np.sort(drawn)):
        tokens, mask = ids[offsets[row] : offsets[row + 1]], learnt[offsets[row] : offsets[row + 1]]
        first = max(int(mask.argmax()), 1)
        prompts.append(tokens[:first].tolist())
        references.append(prepared.tokenizer.decode(tokens[first:].tolist(), skip_special_tokens=True))
        names.append(f"row {int(table.column(ROW)[row]) + 1}")
    check_references(options.answer, references, names)
    prepared.binding.load(w)
    batch = prepared.experiment.evaluation.batch_size
    said = complete(prepared.binding.model, prepared.tokenizer, prompts, options.max_new_tokens, batch)
    right = [agrees(options.answer, *each) for each in zip(said, references, names, strict=True)]
    return {"exact_match": float(np.mean(right))}


def that_writes(prepared: Prepared, rows: int) -> Prepared:
    """The same, with answers written to so many rows.

    Raises UsageError when the task makes no prompts.
    """
    experiment = prepared.experiment
    if not prepared.task.info.uses_templates:
        raise UsageError(f"{experiment.model.task} makes no prompts, so no answer is generated", where="--generate")
    known = KNOWN[experiment.data.dataset].answer if experiment.data.dataset else None
    options = experiment.evaluation.generate or Generate.model_validate({"answer": known} if known else {})
    options = options.model_copy(update={"rows": rows})
    evaluation = experiment.evaluation.model_copy(update={"generate": options})
    return replace(prepared, experiment=experiment.model_copy(update={"evaluation": evaluation}))


@torch.inference_mode()
def complete(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> list[str]:
    """What the model writes behind each prompt: always the most likely token, up to its end or so many tokens.

    Prompts of like length are answered together, padded on the left. Raises ModelError for a model without `generate`.
    """
    if not hasattr(model, "generate"):
        fix = "Use a Hugging Face model, or take evaluation.generate out"
        raise ModelError(f"a {type(model).__name__} has no `generate`", where="evaluation.generate", fix=fix)
    from transformers import GenerationConfig

    own: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] if own is not None else [])}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True,
        eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    said = [""] * len(prompts)
    with _resting(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = len(prompts[chosen[0]])
            ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for i, prompt in enumerate(prompts[c] for c in chosen):
                ids[i, width - len(prompt) :] = torch.tensor(prompt)
                mask[i, width - len(prompt) :] = 1
            try:
                out = model.generate(  # type: ignore[operator]
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
                )
            except Exception as error:  # the model may be anyone's
                what = f"the model cannot write answers: {type(error).__name__}: {error}"
                fix = "take evaluation.generate out; where memory ran out, lower evaluation.batch_size"
                raise ModelError(what, where="evaluation.generate", fix=fix) from error
            for c, tokens in zip(chosen, out[:, width:].tolist(), strict=True):
                said[c] = tokenizer.decode(tokens, skip_special_tokens=True)
    return said


@contextmanager
def _resting(model: nn.Module) -> Iterator[None]:
    """Layers that recompute their activations are in training mode, in which they forget what was written before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _numbers(text: str) -> list[Fraction]:
    return [
        Fraction(("-" if number["sign"] else "") + number["whole"].replace(",", "") + (number["rest"] or ""))
        for number in _NUMBER.finditer(text)
    ]
