"""Local training: the clients of a group, all at once or one after the other, with the same result.

    for each step: g <- gradient of the client's mean loss; clip; g <- the algorithm's gradient rule; optimizer step

Clients are sorted by their number of steps, and the bank shrinks to those still training: `[K, n]`, then its first rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom.config.schema import Local
from fedloom.data.partition import Partition
from fedloom.data.table import Table
from fedloom.errors import ClientError
from fedloom.local.batches import plan_steps
from fedloom.local.estimate import GradientEstimator, estimator
from fedloom.local.group import Group, Member, Rule
from fedloom.local.prepare import Prepared
from fedloom.models.binding import Binding
from fedloom.models.dropout import Block
from fedloom.tasks.base import Batch, Rows, Task
from fedloom.vector.bank import Bank, clip_rows
from fedloom.vector.optim import State, optimizer
from fedloom.vector.schedule import factor

# Gradients are rows of a bank, so their strides are wider than a tensor's of that shape would be; that is what we want.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

_DIVERGED = "lower `local.lr`, set `local.clip`, or drop failing clients with `federation.on_failure: drop`"

__all__ = ["Trainer", "make_trainer"]


@dataclass(frozen=True)
class _Work:
    """A group under training: the rows, their optimizer's state, and how many steps each member takes."""

    group: Group
    bank: Bank
    memory: State
    rule: Rule
    only: Tensor | None
    steps: Sequence[int]

    def part(self, start: int, end: int) -> _Work:
        """The members from start to end, as views."""
        rows = slice(start, end)
        return replace(
            self,
            group=self.group.part(start, end),
            bank=Bank(self.bank.values[rows], self.bank.grads[rows]),
            memory={name: values[rows] for name, values in self.memory.items()},
            steps=self.steps[rows],
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
    sample_losses: bool = False
    """Whether to take down the losses of single samples."""
    estimator: GradientEstimator = field(init=False, repr=False)
    notes: list[str] = field(default_factory=list, init=False, repr=False)
    """What a user should know of how this is trained, until someone has taken it down."""
    _said: set[str] = field(default_factory=set, init=False, repr=False)
    _reach: float = field(default=1.0, init=False, repr=False)
    _rooms: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.estimator = estimator(self)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self._said:
            self._said.add(text)
            self.notes.append(text)

    def member(self, partition: Partition, client: int, round: int, scale: int = 1, stretch: int = 1) -> Member:
        """A client as a member of a group, its steps planned."""
        name = partition.clients[client]
        rows, lengths = partition.rows(client), self.table.lengths
        steps = plan_steps(
            rows, lengths, self.local, seed=self.seed, round=round, client=name, scale=scale, stretch=stretch
        )
        return Member(name, steps, rows)

    def fresh_memory(self, rows: Tensor) -> State:
        """The optimizer's state before its first step, for rows `[K, n]`."""
        return optimizer(self.local).init(rows)

    def room(self, name: str, like: Tensor) -> Tensor:
        """Memory for rows like these, used again by the next group: fresh memory costs more than it holds."""
        if name not in self._rooms or len(self._rooms[name]) < len(like):
            self._rooms[name] = torch.empty(like.shape, device=like.device)
        return self._rooms[name][: len(like)]

    def train(
        self, group: Group, rows: Tensor, rule: Rule, *, only: Tensor | None, steps: int | None, name: str
    ) -> Tensor:
        """See `Group.train`. A member whose loss or row is not finite gets its `failure`; the others are not affected."""
        values = rows.to(self.binding.device).clone(memory_format=torch.contiguous_format)
        memory = group.memory.get(name) or self.fresh_memory(values)
        work = _Work(
            group=group,
            bank=Bank(values, self.room("gradients", values)),
            memory=memory,
            rule=rule,
            only=group.trains if only is None else only,
            steps=[steps or len(member.steps) for member in group.members],
        )
        if self.grouped:
            self._train(work)
        else:
            self._one_by_one(work)
        group.memory[name] = memory
        self._check(work)
        return values

    def whole(self, group: Group, rows: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
        """The mean loss `[K, 1]` of each member over all its rows of data, at rows `[K, n]`, and its gradient or zeros `[K, n]`."""
        size, device = self.local.batch_size, self.binding.device
        values = rows.to(device).clone(memory_format=torch.contiguous_format)
        bank = Bank(values, torch.zeros_like(values))
        losses = torch.zeros(len(group), device=device)
        spans = [(k, k + 1) for k in range(len(group))] if not self.grouped else [(0, len(group))]
        for start, end in spans:
            own = group.part(start, end)
            data = [
                m.rows if m.rows is not None else np.concatenate([r for s in m.steps for r in s]) for m in own.members
            ]
            micro = [[r[i : i + size] for i in range(0, len(r), size)] for r in data]
            with self._lent(Bank(values[start:end], bank.grads[start:end])) as lent, torch.set_grad_enabled(gradients):
                lent.grads.zero_()
                if gradients:
                    losses[start:end] = self.estimator.estimate(lent, own, micro, None, group.trains)
                else:
                    losses[start:end] = self.mean_losses(own.members, micro, group.round, None, backward=False)
                bank.grads[start:end] = lent.grads
        for member, loss in zip(group.members, losses.tolist(), strict=True):
            if not math.isfinite(loss) and member.failure is None:
                what = f"the mean loss over all its rows was {loss}"
                member.failure = ClientError(member.client, group.round, what, fix=_DIVERGED)
            if math.isnan(member.loss):  # a method without local steps reports this one
                member.loss = loss
        return losses.unsqueeze(1), bank.grads

    def first_gradients(self, group: Group) -> Tensor:
        """`[K, n]`: the gradient of every entry, whichever train, at the anchor on the batches of each member's first step."""
        spans = [(0, len(group))] if self.grouped else [(k, k + 1) for k in range(len(group))]
        members = [replace(m, derivatives=[]) for m in group.members]  # what they send is of their steps alone
        apart = replace(group, members=members)
        gradients = torch.cat([self._elsewhere(apart.part(a, b), None, 0, group.anchor[a:b]) for a, b in spans])
        for member, own in zip(group.members, members, strict=True):
            member.tokens, member.samples, member.forwards = own.tokens, own.samples, own.forwards
            member.directions = own.directions
        for member, whole in zip(group.members, torch.isfinite(gradients.sum(1)).tolist(), strict=True):
            if not whole and member.failure is None:
                what = "the gradient of its first step's batches is not finite"
                member.failure = ClientError(member.client, group.round, what, fix=_DIVERGED)
        return gradients

    @contextmanager
    def _lent(self, bank: Bank, only: Tensor | None = None) -> Iterator[Bank]:
        """The model with the rows of a bank: all at once, or the one row at home, whose values and gradients come back after."""
        if self.grouped:
            with self.binding.group(bank, only=only):
                yield bank
            return
        home = self.binding.home
        before = home.values.clone(), home.grads.clone()
        home.values.copy_(bank.values)
        try:
            yield home
        finally:
            home.values.copy_(before[0])
            home.grads.copy_(before[1])

    def _one_by_one(self, work: _Work) -> None:
        home = self.binding.home
        for k in range(len(work.steps)):
            own = work.part(k, k + 1)
            home.values.copy_(own.bank.values)
            self._train(replace(own, bank=home))
            own.bank.values.copy_(home.values)

    def _train(self, work: _Work) -> None:
        """Train sorted members on the rows of a bank, in place."""
        optim = optimizer(self.local)
        losses = torch.zeros(work.steps[0], len(work.steps), device=work.bank.values.device)
        fixed = work.bank.values.clone() if work.only is not None else None
        step, active = 0, len(work.steps)
        self._reach = self.binding.reach(work.only)
        while active:
            now = work.part(0, active)
            lend: AbstractContextManager[None] = (
                self.binding.at_home(work.only)
                if work.bank is self.binding.home
                else self.binding.group(now.bank, only=work.only)
            )
            with lend:
                while step < now.steps[-1]:
                    losses[step, :active] = self._estimate(now.bank, now.group, step, work.only)
                    now.group.at = partial(self._elsewhere, now.group, work.only, step)
                    with torch.no_grad():
                        self._move(now, optim, step)
                        if work.only is not None and fixed is not None:
                            torch.where(work.only, now.bank.values, fixed[:active], out=now.bank.values)
                    step += 1
            while active and work.steps[active - 1] <= step:
                active -= 1
        self._reach = 1.0
        self._report(work, losses.cpu())

    def _move(self, work: _Work, optim: Any, step: int) -> None:
        """One step of the optimizer along the rule's direction."""
        g = work.bank.grads
        if work.only is not None:
            g = g.mul_(work.only)
        if self.local.clip:
            g = clip_rows(g, self.local.clip)
        g = work.rule(g, work.bank.values, work.group)
        if work.only is not None:
            g = g * work.only
        optim.step(work.bank.values, g, work.memory, self._rates(work, step))

    def _estimate(self, bank: Bank, group: Group, step: int, only: Tensor | None) -> Tensor:
        """Write each member's gradient of its mean loss over this step's micro-batches; returns the losses `[K]`."""
        parts = [m.steps[step % len(m.steps)] for m in group.members]
        return self.estimator.estimate(bank, group, parts, step, only)

    def _elsewhere(self, group: Group, only: Tensor | None, step: int, rows: Tensor, ahead: int = 0) -> Tensor:
        """See `Group.at`; directions, where there are any, are those of that step."""
        bank = Bank(rows.clone(memory_format=torch.contiguous_format), torch.zeros_like(rows))
        with self._lent(bank, only) as lent, torch.enable_grad():
            self._estimate(lent, group, step + ahead, only)
            return lent.grads.clone()

    def mean_losses(
        self,
        members: Sequence[Member],
        parts: Sequence[list[Rows]],
        round: int,
        step: int | None,
        backward: bool = True,
    ) -> Tensor:
        """`[K]`: each member's mean loss over its micro-batches, whose gradients are added up; without a step, without dropout."""
        batches = [self._collate(parts, i) for i in range(max(map(len, parts)))]
        device = self.binding.device
        items = torch.tensor([b.items for b in batches], dtype=torch.float32).sum(0).clamp_min(1).to(device)
        total = torch.zeros(len(members), device=device)
        for i, batch in enumerate(batches):
            blocks: list[Block] = []
            if step is not None:
                keys = [(self.seed, round, m.client, step * self.local.accumulate + i) for m in members]
                blocks = [Block(k, r, t) for k, r, t in zip(keys, batch.rows, batch.lengths, strict=True)]
            with self.binding.dropouts.active(blocks) if blocks else nullcontext():
                losses = self._losses(members, batch.to(device), backward) / items
                if backward:
                    losses.sum().backward()  # type: ignore[no-untyped-call]
            total += losses.detach()
            for member, tokens, rows in zip(members, batch.tokens, batch.rows, strict=True):
                member.tokens += tokens
                member.samples += rows
                # the way back is about two forwards through a frozen base, down to the lowest layer that trains
                member.forwards += int((1 + 2 * self._reach if backward else 1) * rows + 0.5)
        return total

    def _losses(self, members: Sequence[Member], batch: Batch, backward: bool) -> Tensor:
        """`[K]`: the losses, summed over each client's items; with the squares of its samples' mean losses, where asked for."""
        if not (self.sample_losses and backward):
            return self.task.losses(self.binding.model, batch)
        rows = self.task.measure(self.binding.model, batch)
        each = (rows["loss"].detach() / rows["items"].clamp_min(1)).square().view(len(members), -1).tolist()
        for member, own, real in zip(members, each, batch.rows, strict=True):
            member.squares = (member.squares or 0.0) + sum(own[:real])
        return rows["loss"].view(len(members), -1).sum(1).float()

    def _collate(self, parts: Sequence[list[Rows]], i: int) -> Batch:
        nothing = parts[0][0][:0]
        return self.task.collate(self.table, [p[i] if i < len(p) else nothing for p in parts])

    def _rates(self, work: _Work, step: int) -> Tensor:
        """`[K, 1]`: each member's learning rate at this step."""
        rates = [work.group.lr * factor(self.local.schedule, step, steps) for steps in work.steps]
        return torch.tensor(rates, device=self.binding.device).unsqueeze(1)

    def _check(self, work: _Work) -> None:
        """A last step can diverge with every loss finite: a row that is not finite is its member's failure."""
        finite = torch.isfinite(work.bank.values.sum(1)).tolist()
        for member, steps, whole in zip(work.group.members, work.steps, finite, strict=True):
            if not whole and member.failure is None:
                what = f"training diverged: the vector is not finite after the last of {steps} steps"
                member.failure = ClientError(member.client, work.group.round, what, fix=_DIVERGED)

    def _report(self, work: _Work, losses: Tensor) -> None:
        for k, (member, steps) in enumerate(zip(work.group.members, work.steps, strict=True)):
            own = losses[:steps, k]
            bad = (~torch.isfinite(own)).nonzero()
            if len(bad) and member.failure is None:
                step = int(bad[0])
                rows = [int(r) for part in member.steps[step % len(member.steps)] for r in part][:8]
                member.failure = ClientError(
                    member.client,
                    work.group.round,
                    f"the loss was {own[step].item()} at step {step + 1} of {steps}, on table rows {rows}",
                    fix=_DIVERGED,
                )
            member.loss = float(own.mean())


def make_trainer(prepared: Prepared, grouped: bool) -> Trainer:
    """The trainer of an experiment."""
    experiment = prepared.experiment
    return Trainer(
        prepared.binding,
        prepared.task,
        prepared.table,
        experiment.local,
        experiment.seed,
        grouped,
        prepared.sample_losses,
    )
