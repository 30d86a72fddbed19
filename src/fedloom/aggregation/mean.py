"""The weighted mean, as a fold: sum_k p_k delta_k / sum_k p_k, the sum kept in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mean", "Partial"]


@dataclass(frozen=True)
class Partial:
    """What a group hands on: the weighted sum `[n]` in float64, and the sum of the weights."""

    total: Tensor
    weight: float


class Mean:
    """`empty`, `add`, `merge`, `finish`: memory is one vector, whatever the number of clients."""

    def empty(self, n: int) -> Partial:
        """The sum of nothing."""
        return Partial(torch.zeros(n, dtype=torch.float64), 0.0)

    def add(self, partial: Partial, rows: Tensor, weights: Sequence[float]) -> Partial:
        """Add rows `[K, n]` with weights `[K]`; the sum grows in place, and `partial` is not to be used again."""
        for row, weight in zip(rows.cpu().unbind(), weights, strict=True):
            partial.total.add_(row, alpha=weight)  # float32 into float64, without a float64 copy of the row
        return Partial(partial.total, partial.weight + math.fsum(weights))

    def merge(self, a: Partial, b: Partial) -> Partial:
        """The sum of two partial sums, in place of `a`; groups are merged in a fixed order, so the result is the same bits."""
        return Partial(a.total.add_(b.total), a.weight + b.weight)

    def finish(self, partial: Partial) -> Tensor:
        """The mean `[n]` in float32; zero when no weight came back."""
        if partial.weight == 0:
            return torch.zeros_like(partial.total, dtype=torch.float32)
        return (partial.total / partial.weight).float()
