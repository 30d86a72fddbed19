"""Extractive question answering: the answer is a part of the context.

loss_k = - mean over client k's rows of (log p(start | x) + log p(end | x)) / 2, p being a softmax over the row's tokens.
Exact match and F1 are those of SQuAD (Rajpurkar et al. 2016, section 6.1): the best over a row's answers, without case,
punctuation, articles and extra spaces. A question without an answer (SQuAD 2.0, Rajpurkar et al. 2018) points to the first token.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedloom.config.schema import Data
from fedloom.data.spans import SpanEncoder, characters, references
from fedloom.data.table import Table
from fedloom.tasks import TASKS, TaskInfo
from fedloom.tasks.base import Batch, Rows, join_ragged

__all__ = ["SpanQA", "exact_match", "normalise", "token_f1"]

_NONE = -100  # the target of a padding row
_LONGEST = 30  # tokens of an answer, as in BERT's own evaluation (Devlin et al. 2019)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass
class SpanBatch(Batch):
    """`picks` are the flat positions that may be in an answer; `examples` say where each row's texts are kept."""

    table: Table | None = None
    examples: NDArray[np.int64] | None = None


class SpanQA:
    """The first and the last token of the answer."""

    info: ClassVar[TaskInfo] = TASKS["span_qa"]
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    peft_task: ClassVar[str | None] = "QUESTION_ANS"
    heads: ClassVar[tuple[str, ...]] = ("qa_outputs",)

    def __init__(self, tokenizer: Any, data: Data, labels: Sequence[str]) -> None:
        self.tokenizer, self.data = tokenizer, data

    def encoder(self) -> Callable[..., Any]:
        """Token ids, and the answer's first and last token."""
        return SpanEncoder(self.tokenizer, self.data.max_length)

    def collate(self, table: Table, rows: Sequence[Rows]) -> Batch:
        """Ids and masks `[K*B, T]`, the answers' first and last tokens `[K*B, 2]`."""
        ids, offsets = table.ragged("input_ids")
        input_ids, lengths, longest = join_ragged(ids, offsets, rows, self.tokenizer.pad_token_id)
        width = input_ids.shape[1]
        attention = (torch.arange(width) < lengths.clamp_min(1).unsqueeze(1)).long()
        b, counts = len(input_ids) // len(rows), [len(r) for r in rows]
        start, end, places = table.column("start"), table.column("end"), table.ragged("places")[0]
        targets = np.full((len(rows), b, 2), _NONE, dtype=np.int64)
        examples = np.full((len(rows), b), -1, dtype=np.int64)
        allowed = np.zeros((len(rows), b, width), dtype=bool)
        allowed[:, :, 0] = bool((end == 0).any())  # "no answer" may be said where some question has none
        for k, own in enumerate(rows):
            targets[k, : len(own)] = np.stack([start[own], end[own]], 1)
            examples[k, : len(own)] = own
            for i, row in enumerate(own):
                first = places[2 * offsets[row] : 2 * offsets[row + 1] : 2]
                allowed[k, i, : len(first)] |= first >= 0
        inputs = {"input_ids": input_ids, "attention_mask": attention}
        if "token_type_ids" in table.columns:
            inputs["token_type_ids"] = join_ragged(*table.ragged("token_type_ids"), rows, 0)[0]
        return SpanBatch(
            inputs=inputs,
            targets=torch.from_numpy(targets.reshape(-1, 2)),
            items=counts,
            rows=counts,
            lengths=longest,
            tokens=lengths.view(len(rows), -1).sum(1).tolist(),
            picks=torch.from_numpy(allowed.reshape(-1).nonzero()[0]),
            table=table,
            examples=examples.reshape(-1),
        )

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[K]`: cross entropy of the first and the last token, their mean, summed over each client's rows."""
        return self._entropy(self._logits(model, batch), batch).view(len(batch.rows), -1).sum(1)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Each row's loss, and its exact match and F1 against the best of its answers."""
        assert isinstance(batch, SpanBatch) and batch.table is not None and batch.examples is not None
        logits = self._logits(model, batch)
        spans = _best_spans(logits, batch).cpu().numpy()
        scores = np.zeros((len(spans), 2))
        for i, example in enumerate(batch.examples):
            if example >= 0:
                said, answers = _text(batch.table, int(example), *spans[i]), _answers(batch.table, int(example))
                scores[i] = [max(metric(said, answer) for answer in answers) for metric in (exact_match, token_f1)]
        return {
            "loss": self._entropy(logits, batch).double(),
            "items": torch.from_numpy((batch.examples >= 0).astype(np.float64)),
            "exact_match": torch.from_numpy(scores[:, 0]),
            "f1": torch.from_numpy(scores[:, 1]),
        }

    def metrics(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Loss, exact match and F1, each the mean over the rows."""
        return {name: float(rows[name].mean()) for name in ("loss", "exact_match", "f1")}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[2, K*B, T]`, of the first and of the last token; padding has no chance."""
        output: Any = model(**batch.inputs)
        both = output if isinstance(output, tuple) else (output.start_logits, output.end_logits)
        logits = torch.stack(both).float()
        return logits.masked_fill(batch.inputs["attention_mask"] == 0, torch.finfo(logits.dtype).min)

    def _entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        n, width = logits.shape[1:]
        targets = batch.targets.T.reshape(-1)
        entropy = F.cross_entropy(logits.reshape(-1, width), targets, reduction="none", ignore_index=_NONE)
        return entropy.view(2, n).mean(0)


def _best_spans(logits: Tensor, batch: Batch) -> Tensor:
    """`[K*B, 2]`: of all spans of at most 30 context tokens, and of "no answer" at (0, 0), the one of the highest sum."""
    assert batch.picks is not None
    n, width = logits.shape[1:]
    allowed = torch.zeros(n * width, dtype=torch.bool, device=logits.device)
    allowed[batch.picks] = True
    start, end = logits.masked_fill(~allowed.view(n, width), -torch.inf)
    place = torch.arange(width, device=logits.device)
    distance = place.unsqueeze(0) - place.unsqueeze(1)
    wanted = (distance >= 0) & (distance < _LONGEST)
    wanted[0, 1:] = False
    scores = (start.unsqueeze(2) + end.unsqueeze(1)).masked_fill(~wanted, -torch.inf)
    best = scores.view(n, -1).argmax(1)
    return torch.stack([best // width, best % width], 1)


def _text(table: Table, row: int, first: int, last: int) -> str:
    """The characters from the first token to the last; nothing where they are not of the context."""
    places = _row(table, "places", row).reshape(-1, 2)
    begin, end = int(places[first, 0]), int(places[last, 1])
    return characters(_row(table, "context", row))[begin:end] if begin >= 0 else ""


def _answers(table: Table, row: int) -> list[str]:
    return references(_row(table, "answers", row)) or [""]


def _row(table: Table, name: str, row: int) -> NDArray[Any]:
    values, offsets = table.ragged(name)
    return values[offsets[row] : offsets[row + 1]]


def normalise(text: str) -> str:
    """Without case, punctuation, the words a, an and the, and with single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(said: str, answer: str) -> float:
    """1 where both are the same once normalised, else 0."""
    return float(normalise(said) == normalise(answer))


def token_f1(said: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words, each as often as it occurs; an empty text only equals another."""
    ours, theirs = normalise(said).split(), normalise(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))
