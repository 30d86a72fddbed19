"""The weighted mean, as a fold: sum_k p_k x_k / sum_k p_k for everything that clients upload, the sums kept in float64."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Mean", "Partial"]

_BLOCK = 1 << 17  # numbers: a megabyte, which stays in a core's own memory


@dataclass
class Partial:
    """What a group hands on: the sums in float64 by the upload's name, the sum of the weights, the number of updates."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    count: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Where clients sent different entries: the sum of the weights of those who sent each, by the upload's name."""
    senders: Tensor | None = None
    """Then also how many sent each entry, `[n]`."""
    kept: list[tuple[float, Tensor]] = field(default_factory=list)
    """Weight and row of every update, for the rules that need each; a mean keeps none."""


class Mean:
    """`empty`, `add`, `merge`, `finish`: memory is one vector an upload, whatever the number of clients.

    Uploads named in `unweighted` count alike: sum_k x_k / K.
    """

    def __init__(self, unweighted: Collection[str] = ()) -> None:
        self.unweighted = frozenset(unweighted)

    def empty(self) -> Partial:
        """The sum of nothing."""
        return Partial()

    def add(
        self,
        partial: Partial,
        update: Mapping[str, Tensor],
        weight: float,
        start: Tensor,
        discount: float = 1.0,
        sent: Tensor | None = None,
    ) -> Partial:
        """Add a client's update, in place of `partial`; `start` is the vector `[n]` it started from.

        A discount shrinks the update, not what the mean divides by: sum_k p_k d_k x_k / sum_k p_k. With `sent`, `[n]`, the client
        sent only these entries of the vectors in its update, and an entry's mean is over those who sent it.
        """
        for name, value in update.items():
            total = partial.totals.get(name)
            if total is None:
                total = partial.totals[name] = torch.zeros(value.shape, dtype=torch.float64)
            _add(total, value, discount if name in self.unweighted else weight * discount)
            if sent is not None and value.shape == sent.shape:
                share = 1.0 if name in self.unweighted else weight
                own = partial.weights.setdefault(name, torch.zeros(value.shape, dtype=torch.float64))
                own.add_(sent, alpha=share)
        if sent is not None:
            partial.senders = sent.long() if partial.senders is None else partial.senders + sent
        partial.weight += weight
        partial.count += 1
        return partial

    def merge(self, a: Partial, b: Partial) -> Partial:
        """The sum of two partial sums, in place of `a`; groups are merged in a fixed order, so the result is the same bits."""
        for name, total in b.totals.items():
            a.totals[name] = a.totals[name].add_(total) if name in a.totals else total
        for name, own in b.weights.items():
            a.weights[name] = a.weights[name].add_(own) if name in a.weights else own
        if b.senders is not None:
            a.senders = b.senders if a.senders is None else a.senders + b.senders
        a.weight += b.weight
        a.count += b.count
        a.kept += b.kept
        return a

    def finish(self, partial: Partial) -> dict[str, Tensor]:
        """The means in float32; zero where no weight came back."""
        divisors = {name: partial.count if name in self.unweighted else partial.weight for name in partial.totals}
        means = {name: _divided(total, divisors[name] or 1.0) for name, total in partial.totals.items()}
        for name, own in partial.weights.items():
            means[name] = (partial.totals[name] / torch.where(own > 0, own, 1.0)).float()
        return means


def _add(total: Tensor, value: Tensor, factor: float) -> None:
    """total += factor * value in float64, without the float64 copy of the whole that torch makes of a float32 value."""
    sums, values = total.view(-1), value.reshape(-1)
    for begin in range(0, len(sums), _BLOCK):
        sums[begin : begin + _BLOCK].add_(values[begin : begin + _BLOCK], alpha=factor)


def _divided(total: Tensor, divisor: float) -> Tensor:
    """A float64 sum over its divisor, in float32, without a float64 copy of the whole."""
    mean = torch.empty(total.shape, dtype=torch.float32)
    whole, parts = total.view(-1), mean.view(-1)
    for begin in range(0, len(parts), _BLOCK):
        parts[begin : begin + _BLOCK] = whole[begin : begin + _BLOCK] / divisor
    return mean
