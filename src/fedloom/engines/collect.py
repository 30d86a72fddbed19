"""What comes back in a round, group after group."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fedloom.aggregation.mean import Mean, Partial
from fedloom.engines.group import Assignment, ClientReport, GroupResult
from fedloom.errors import RunError

__all__ = ["Collected"]


@dataclass
class Collected:
    """The sum of the updates so far, a report a client, and what is kept beside them."""

    fold: Mean
    partial: Partial = field(init=False)
    reports: list[ClientReport] = field(default_factory=list)
    factors: list[tuple[float, Tensor]] = field(default_factory=list)
    """Where the aggregation is watched, every client's weight and LoRA factors."""
    masks: list[tuple[Tensor, int]] = field(default_factory=list)
    """Where layers are chosen: the entries `[n]` that trained, and the number of clients that trained them."""
    bytes_down: int = 0
    peak_memory: int = 0
    """Bytes: the largest of the processes that trained."""

    def __post_init__(self) -> None:
        self.partial = self.fold.empty()

    def add(self, part: Assignment, result: GroupResult) -> None:
        """Add a group's result to the sum; groups come in a fixed order."""
        self.partial = self.fold.merge(self.partial, result.partial)
        self.reports += result.reports
        self.factors += result.factors
        self.peak_memory = max(self.peak_memory, result.peak_memory)
        if part.layers is None:
            return
        mask, count = self.masks.pop() if self.masks and self.masks[-1][0] is part.layers else (part.layers, 0)
        self.masks.append((mask, count + result.partial.count))

    def aggregate(self) -> dict[str, Tensor] | None:
        """What the updates come to; None where all that arrived had failed."""
        return self.fold.finish(self.partial) if self.partial.count else None

    @property
    def arrived(self) -> list[ClientReport]:
        """The reports of the clients whose updates are in the sum."""
        return [r for r in self.reports if r.status == "ok"]

    @property
    def clients(self) -> int | Tensor:
        """How many updates arrived; where clients sent different entries, of each entry `[n]`."""
        return self.partial.count if self.partial.senders is None else self.partial.senders

    @property
    def trained(self) -> Tensor | None:
        """`[n]`: the entries that some client trained; None for all."""
        if self.partial.senders is not None:
            return self.partial.senders > 0
        masks = [mask for mask, count in self.masks if count]
        return reduce(torch.logical_or, masks) if masks else None

    def account(self) -> dict[str, Any]:
        """What the round cost and how its clients fared, for the round's record."""
        ok = self.arrived
        record: dict[str, Any] = {
            "clients": len(ok),
            "dropped": len(self.reports) - len(ok),
            "bytes_up": sum(r.bytes_up for r in ok),
            "bytes_down": self.bytes_down,
            "tokens": sum(r.tokens for r in ok),
            "forward_equivalents": sum(r.forward_equivalents for r in ok),
            "directions": sum(r.directions for r in ok),
        }
        if ok:
            record["train_loss"] = sum(r.weight * (r.train_loss or 0.0) for r in ok) / sum(r.weight for r in ok)
        return record

    def failure(self, round: int, missed: int) -> RunError:
        """The error of a run whose last `missed` clients have all failed."""
        first = (self.reports[0].reason or "").partition("\n")[0]  # a traceback may follow
        who = f"every client of round {round}" if len(self.reports) == missed else f"the last {missed} clients"
        return RunError(f"{who} failed", why=first, fix="see clients.jsonl")
