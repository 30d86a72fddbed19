"""One label for a text: loss_k = - mean over client k's rows of log p(label | text)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedloom.config.schema import Data
from fedloom.data.encode import TextEncoder
from fedloom.data.table import Table
from fedloom.tasks import TASKS, TaskInfo
from fedloom.tasks.base import Batch, Rows, join_ragged, logits_of

__all__ = ["Classification"]

_NONE = -100  # the target of a padding row


class Classification:
    """The label of a text, with a head that is learnt and aggregated beside the adapter."""

    info: ClassVar[TaskInfo] = TASKS["classification"]
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "score")

    def __init__(self, tokenizer: Any, data: Data, labels: Sequence[str]) -> None:
        self.tokenizer, self.data, self.labels = tokenizer, data, list(labels)

    def encoder(self) -> Callable[..., Any]:
        """Token ids and the label's number."""
        return TextEncoder(self.tokenizer, self.data.max_length, self.labels)

    def collate(self, table: Table, rows: Sequence[Rows]) -> Batch:
        """Ids and masks `[K*B, T]`, labels `[K*B]`."""
        ids, offsets = table.ragged("input_ids")
        input_ids, lengths, longest = join_ragged(ids, offsets, rows, self.tokenizer.pad_token_id)
        attention = (torch.arange(input_ids.shape[1]) < lengths.clamp_min(1).unsqueeze(1)).long()
        b = len(input_ids) // len(rows)
        labels, targets = table.column("label_id"), np.full((len(rows), b), _NONE, dtype=np.int64)
        for k, own in enumerate(rows):
            targets[k, : len(own)] = labels[own]
        counts = [len(r) for r in rows]
        inputs = {"input_ids": input_ids, "attention_mask": attention}
        if "token_type_ids" in table.columns:
            inputs["token_type_ids"] = join_ragged(*table.ragged("token_type_ids"), rows, 0)[0]
        return Batch(
            inputs=inputs,
            targets=torch.from_numpy(targets.reshape(-1)),
            items=counts,
            rows=counts,
            lengths=longest,
            tokens=lengths.view(len(rows), -1).sum(1).tolist(),
        )

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """`[K]`: cross entropy summed over each client's rows."""
        logits = logits_of(model(**batch.inputs))
        entropy = F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=_NONE)
        return entropy.view(len(batch.rows), -1).sum(1)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Each row's loss, label and prediction."""
        logits = logits_of(model(**batch.inputs))
        return {
            "loss": F.cross_entropy(logits, batch.targets, reduction="none", ignore_index=_NONE).double(),
            "items": torch.ones(len(logits), dtype=torch.float64),
            "label": batch.targets,
            "prediction": logits.argmax(-1),
        }

    def metrics(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Loss, accuracy, F1 averaged over the labels that occur or are predicted, and Matthews' correlation.

        The last is R_K of Gorodkin 2004, for s rows, c of them right, t_k of label k and p_k predicted as k:

            (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2)),   0 where only one label occurs or is predicted.
        """
        label, prediction = rows["label"], rows["prediction"]
        n = len(self.labels)
        confusion = np.bincount(label * n + prediction, minlength=n * n).reshape(n, n)
        right, truth, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        seen = (truth + said) > 0
        f1 = 2 * right[seen] / (truth + said)[seen]
        s, c = float(len(label)), float(right.sum())
        p, t = said.astype(np.float64), truth.astype(np.float64)
        spread = math.sqrt((s * s - p @ p) * (s * s - t @ t))
        return {
            "loss": float(rows["loss"].mean()),
            "accuracy": float(right.sum() / len(label)),
            "macro_f1": float(f1.mean()),
            "mcc": float((c * s - p @ t) / spread) if spread else 0.0,
        }
