"""Local training: the clients of a group, all at once or one after the other, with the same result.

    for each step: g <- gradient of the client's mean loss; clip; g <- the algorithm's gradient rule; optimizer step

Clients are sorted by their number of steps, and the bank shrinks to those still training: `[K, n]`, then its first rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fedloom.config.schema import Local
from fedloom.data.partition import Partition
from fedloom.data.table import Table
from fedloom.errors import ClientError
from fedloom.local.batches import plan_steps
from fedloom.models.binding import Binding
from fedloom.models.dropout import Block
from fedloom.tasks.base import Batch, Rows, Task
from fedloom.vector.bank import Bank, clip_rows
from fedloom.vector.optim import State, optimizer
from fedloom.vector.schedule import factor

# Gradients are rows of a bank, so their strides are wider than a tensor's of that shape would be; that is what we want.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

_DIVERGED = "lower `local.lr`, set `local.clip`, or drop failing clients with `federation.on_failure: drop`"

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


@dataclass(frozen=True)
class _Work:
    """A group under training: everything that has a row a member, and what is the same for all."""

    bank: Bank
    members: Sequence[Member]
    anchor: Tensor
    rule: GradientRule
    state: State
    memory: State
    round: int
    lr_factor: float

    def part(self, start: int, end: int) -> _Work:
        """The members from start to end, as views."""
        rows = slice(start, end)
        return replace(
            self,
            bank=Bank(self.bank.values[rows], self.bank.grads[rows]),
            members=self.members[rows],
            anchor=self.anchor[rows] if len(self.anchor) > 1 else self.anchor,
            state={name: values[rows] for name, values in self.state.items()},
            memory={name: values[rows] for name, values in self.memory.items()},
        )


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
        pick, device = _picker(order), self.binding.device
        values = pick(rows.to(device))
        kept = {k: pick(v.to(device)) for k, v in memory.items()} if memory else self.fresh_memory(values)
        work = _Work(
            bank=Bank(values, self._gradients(values)),
            members=[members[k] for k in order],
            anchor=values.clone() if rows.stride(0) else rows[:1].to(device),  # one row, where all start alike
            rule=rule,
            state={name: pick(own.to(device)) for name, own in state.items()},
            memory=kept,
            round=round,
            lr_factor=lr_factor,
        )
        if self.grouped:
            self._train(work)
        else:
            self._one_by_one(work)
        self._check(work)
        if order == sorted(order):
            return values, kept
        back = _picker([order.index(k) for k in range(len(order))])
        return back(values), {name: back(own) for name, own in kept.items()}

    def member(self, partition: Partition, client: int, round: int, scale: int = 1) -> Member:
        """A client as a member of a group, its steps planned."""
        name = partition.clients[client]
        rows, lengths = partition.rows(client), self.table.lengths
        return Member(
            name, plan_steps(rows, lengths, self.local, seed=self.seed, round=round, client=name, scale=scale)
        )

    def _gradients(self, values: Tensor) -> Tensor:
        """Room for the gradients of `values`, used again by the next group: fresh memory costs more than it holds."""
        if len(self._room) < len(values):
            self._room = torch.empty_like(values)
        return self._room[: len(values)]

    def fresh_memory(self, rows: Tensor) -> State:
        """The optimizer's state before its first step, for rows `[K, n]`."""
        return optimizer(self.local).init(rows)

    def _one_by_one(self, work: _Work) -> None:
        home = self.binding.home
        for k in range(len(work.members)):
            own = work.part(k, k + 1)
            home.values.copy_(own.bank.values)
            self._train(replace(own, bank=home))
            own.bank.values.copy_(home.values)

    def _train(self, work: _Work) -> None:
        """Train sorted members on the rows of a bank, in place."""
        optim = optimizer(self.local)
        losses = torch.zeros(len(work.members[0].steps), len(work.members), device=work.bank.values.device)
        step, active = 0, len(work.members)
        while active:
            now = work.part(0, active)
            with self.binding.group(now.bank) if work.bank is not self.binding.home else nullcontext():
                while step < len(now.members[-1].steps):
                    now.bank.grads.zero_()
                    losses[step, :active] = self._backward(now.members, step, work.round)
                    with torch.no_grad():
                        g = clip_rows(now.bank.grads, self.local.clip) if self.local.clip else now.bank.grads
                        g = work.rule.gradient(g, now.bank.values, now.anchor, now.state)
                        optim.step(now.bank.values, g, now.memory, self._rates(now, step))
                    step += 1
            while active and len(work.members[active - 1].steps) <= step:
                active -= 1
        self._report(work.members, losses.cpu(), work.round)

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

    def _rates(self, work: _Work, step: int) -> Tensor:
        """`[K, 1]`: each member's learning rate at this step."""
        rate, schedule = self.local.lr * work.lr_factor, self.local.schedule
        rates = [rate * factor(schedule, step, len(m.steps)) for m in work.members]
        return torch.tensor(rates, device=self.binding.device).unsqueeze(1)

    def _check(self, work: _Work) -> None:
        """A last step can diverge with every loss finite: a row that is not finite is its member's failure."""
        finite = torch.isfinite(work.bank.values.sum(1)).tolist()
        for member, whole in zip(work.members, finite, strict=True):
            if not whole and member.failure is None:
                what = f"training diverged: the vector is not finite after the last of {len(member.steps)} steps"
                member.failure = ClientError(member.client, work.round, what, fix=_DIVERGED)

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
                    fix=_DIVERGED,
                )
            member.loss = float(own.mean())


def _picker(order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Rows in this order, as memory of their own; a gather is many times slower than the copy that mostly suffices."""
    if list(order) == list(range(len(order))):
        return lambda rows: rows.clone(memory_format=torch.contiguous_format)
    index = torch.tensor(order)
    return lambda rows: rows[index.to(rows.device)]
