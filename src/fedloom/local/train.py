"""Local training: the clients of a group, all at once or one after the other, with the same result.

    for each step: g <- gradient of the client's mean loss; clip; g <- the algorithm's gradient rule; optimizer step

Clients are sorted by their number of steps, and the bank shrinks to those still training: `[K, n]`, then its first rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedloom.config.schema import Local
from fedloom.data.table import Table
from fedloom.errors import ClientError
from fedloom.models.binding import Binding
from fedloom.models.dropout import Block
from fedloom.tasks.base import Batch, Rows, Task
from fedloom.vector.bank import Bank, clip_rows
from fedloom.vector.optim import State, optimizer
from fedloom.vector.schedule import factor

# Gradients are rows of a bank, so their strides are wider than a tensor's of that shape would be; that is what we want.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

__all__ = ["GradientRule", "Member", "Trainer"]


class GradientRule(Protocol):
    """The part of an algorithm that acts inside a local step."""

    def gradient(self, g: Tensor, w: Tensor, anchor: Tensor, state: State) -> Tensor:
        """`[K, n]`: the direction of a step."""
        ...


@dataclass
class Member:
    """A client in a group: its steps of micro-batches, and what training reports of it."""

    client: str
    steps: list[list[Rows]]
    loss: float = float("nan")
    tokens: int = 0
    samples: int = 0
    failure: ClientError | None = field(default=None, repr=False)


@dataclass
class Trainer:
    """Trains rows of a bank; it knows nothing of servers, weights or messages."""

    binding: Binding
    task: Task
    table: Table
    local: Local
    seed: int
    grouped: bool
    _room: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)

    def run(
        self,
        members: Sequence[Member],
        rows: Tensor,
        rule: GradientRule,
        state: State,
        memory: State | None,
        *,
        round: int,
        lr_factor: float,
    ) -> tuple[Tensor, State]:
        """Train K members from rows `[K, n]`; returns the trained rows and the optimizer's state, both in the members' order.

        `memory` is the optimizer's state to go on from, or None for a fresh one. A member whose loss is not finite gets its
        `failure`; the others are not affected.
        """
        order = sorted(range(len(members)), key=lambda k: -len(members[k].steps))
        pick = _picker(order)
        values = pick(rows.to(self.binding.device))
        bank = Bank(values, self._gradients(values))
        anchor = (
            values.clone() if rows.stride(0) else rows[:1].to(self.binding.device)
        )  # one row, where all start alike
        sorted_state = {name: pick(kept.to(values.device)) for name, kept in state.items()}
        optim = optimizer(self.local)
        kept = {name: pick(own.to(values.device)) for name, own in memory.items()} if memory else optim.init(values)
        train = self._train if self.grouped else self._one_by_one
        train(bank, [members[k] for k in order], anchor, rule, sorted_state, kept, round, lr_factor)
        if order == sorted(order):
            return values, kept
        back = _picker([order.index(k) for k in range(len(order))])
        return back(values), {name: back(own) for name, own in kept.items()}

    def _gradients(self, values: Tensor) -> Tensor:
        """Room for the gradients of `values`, used again by the next group: fresh memory costs more than it holds."""
        if len(self._room) < len(values):
            self._room = torch.empty_like(values)
        return self._room[: len(values)]

    def delta(self, trained: Tensor, rows: Tensor) -> Tensor:
        """`trained - rows`, `[K, n]`, what the last run changed; it lies where the gradients were, until the next run."""
        return torch.sub(trained, rows.to(trained.device), out=self._gradients(trained))

    def fresh_memory(self, rows: Tensor) -> State:
        """The optimizer's state before its first step, for rows `[K, n]`."""
        return optimizer(self.local).init(rows)

    def _one_by_one(
        self,
        bank: Bank,
        members: Sequence[Member],
        anchor: Tensor,
        rule: GradientRule,
        state: State,
        memory: State,
        round: int,
        lr_factor: float,
    ) -> None:
        home = self.binding.home
        for k, member in enumerate(members):
            one = slice(k, k + 1)
            home.values.copy_(bank.values[one])
            own_state = {name: values[one] for name, values in state.items()}
            own_memory = {name: values[one] for name, values in memory.items()}
            self._train(
                home,
                [member],
                anchor[one] if len(anchor) > 1 else anchor,
                rule,
                own_state,
                own_memory,
                round,
                lr_factor,
            )
            bank.values[one].copy_(home.values)

    def _train(
        self,
        bank: Bank,
        members: Sequence[Member],
        anchor: Tensor,
        rule: GradientRule,
        state: State,
        memory: State,
        round: int,
        lr_factor: float,
    ) -> None:
        """Train sorted members on the rows of a bank, in place."""
        optim = optimizer(self.local)
        losses = torch.zeros(len(members[0].steps), len(members), device=bank.values.device)
        step, active = 0, len(members)
        while active:
            now = bank.head(active)
            scope = self.binding.group(now) if bank is not self.binding.home else nullcontext()
            here = {name: values[:active] for name, values in state.items()}
            kept = {name: values[:active] for name, values in memory.items()}
            start = anchor[:active] if len(anchor) > 1 else anchor
            with scope:
                while step < len(members[active - 1].steps):
                    now.grads.zero_()
                    losses[step, :active] = self._backward(members[:active], step, round)
                    with torch.no_grad():
                        g = clip_rows(now.grads, self.local.clip) if self.local.clip else now.grads
                        g = rule.gradient(g, now.values, start, here)
                        optim.step(now.values, g, kept, self._rates(members[:active], step, lr_factor))
                    step += 1
            while active and len(members[active - 1].steps) <= step:
                active -= 1
        self._report(members, losses.cpu(), round)

    def _backward(self, members: Sequence[Member], step: int, round: int) -> Tensor:
        """Add each member's gradient of its mean loss over this step's micro-batches; returns the losses `[K]`."""
        parts = [m.steps[step] for m in members]
        batches = [self._collate(parts, i) for i in range(max(map(len, parts)))]
        device = self.binding.device
        items = torch.tensor([b.items for b in batches], dtype=torch.float32).sum(0).clamp_min(1).to(device)
        total = torch.zeros(len(members), device=device)
        for i, batch in enumerate(batches):
            keys = [(self.seed, round, m.client, step * self.local.accumulate + i) for m in members]
            blocks = [Block(k, r, t) for k, r, t in zip(keys, batch.rows, batch.lengths, strict=True)]
            with self.binding.dropouts.active(blocks):
                losses = self.task.losses(self.binding.model, batch.to(device)) / items
                losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
            for member, tokens, rows in zip(members, batch.tokens, batch.rows, strict=True):
                member.tokens += tokens
                member.samples += rows
        return total

    def _collate(self, parts: Sequence[list[Rows]], i: int) -> Batch:
        nothing = parts[0][0][:0]
        return self.task.collate(self.table, [p[i] if i < len(p) else nothing for p in parts])

    def _rates(self, members: Sequence[Member], step: int, lr_factor: float) -> Tensor:
        """`[K, 1]`: each member's learning rate at this step."""
        rates = [self.local.lr * lr_factor * factor(self.local.schedule, step, len(m.steps)) for m in members]
        return torch.tensor(rates, device=self.binding.device).unsqueeze(1)

    def _report(self, members: Sequence[Member], losses: Tensor, round: int) -> None:
        for k, member in enumerate(members):
            own = losses[: len(member.steps), k]
            bad = (~torch.isfinite(own)).nonzero()
            if len(bad):
                step = int(bad[0])
                rows = [int(r) for part in member.steps[step] for r in part][:8]
                member.failure = ClientError(
                    member.client,
                    round,
                    f"the loss was {own[step].item()} at step {step + 1} of {len(member.steps)}, on table rows {rows}",
                    fix="lower `local.lr`, set `local.clip`, or drop failing clients with `federation.on_failure: drop`",
                )
            member.loss = float(own.mean())


def _picker(order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Rows in this order, as memory of their own; a gather is many times slower than the copy that mostly suffices."""
    if list(order) == list(range(len(order))):
        return lambda rows: rows.clone(memory_format=torch.contiguous_format)
    index = torch.tensor(order)
    return lambda rows: rows[index.to(rows.device)]
