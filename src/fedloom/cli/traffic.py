"""The bytes that a run will send, found out beforehand: messages of the shapes and headers that the run's own will have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.base import Algorithm, Round
from fedloom.codec.wire import Seeds, Update, encoded_size
from fedloom.config.gradient import Directional, SchedulePacing, SnrPacing, VariancePacing
from fedloom.config.layers import PriorityLayers
from fedloom.engines.broadcast import broadcast, bytes_down_of
from fedloom.engines.group import Assignment, sent_entries
from fedloom.engines.layers import CHOSEN, ChosenLayers, make_choice
from fedloom.engines.seeds import sends_seeds
from fedloom.local.batches import steps_of
from fedloom.local.group import Group
from fedloom.local.opening import PREVIOUS, rank_masks
from fedloom.local.prepare import Prepared
from fedloom.local.scores import SCORES
from fedloom.local.weighting import client_weight
from fedloom.selection.layers import layers_of
from fedloom.selection.schedule import make_schedule
from fedloom.selection.uniform import Uniform

__all__ = ["Traffic", "plan_traffic"]

_LOOKED_AT = 8
_DIGITS = 8  # by which the headers of two messages may differ in length
_A_LOSS = 0.6931471805599453  # of as many digits as most
_SMALL = 1e-3


class Traffic(NamedTuple):
    """Bytes of a round on average and of all rounds, down and up, and where they can only be a guess or a bound, why."""

    per_round: dict[str, int]
    in_all: dict[str, int]
    notes: list[str]


def plan_traffic(prepared: Prepared, group: Group, trained: Tensor) -> Traffic:
    """The bytes of every round, from a group of which each client has trained one step, and where it ended, `[K, n]`.

    The first rounds are looked at one by one, as many as differ for most; the later ones are taken to be like those but the
    first. What a message is depends on shapes, and on the digits of a loss, so that up may be a few bytes a client off.
    """
    rounds = prepared.experiment.federation.rounds
    looked_at = min(rounds, _LOOKED_AT)
    plan = _Plan(prepared, *_uploads(prepared, group, trained))
    sizes = [plan.round(number) for number in range(1, looked_at + 1)]
    later = np.asarray(sizes[1:] or sizes)
    total = np.asarray(sizes[0]) + (rounds - 1) * later.mean(0)
    in_all = {name: round(value) for name, value in zip(("down", "up"), total.tolist(), strict=True)}
    notes = list(plan.notes())
    if looked_at < rounds and np.ptp(later, axis=0).max() > _DIGITS * plan.asked:
        notes.insert(0, f"about: rounds differ, and only the first {looked_at} were looked at")
    return Traffic({name: round(value / rounds) for name, value in in_all.items()}, in_all, notes)


def _uploads(prepared: Prepared, group: Group, trained: Tensor) -> tuple[dict[str, Tensor], int]:
    """What one client sends, without values, and its directions a step.

    It is asked as if it had taken all its steps at the usual learning rate, and had a single row to judge a vector by.
    """
    member = group.members[0]
    client = prepared.train.clients.index(member.client)
    steps = steps_of(len(prepared.train.rows(client)), prepared.experiment.local, prepared.step_scale)
    whole = replace(
        member,
        steps=member.steps[:1] * steps,
        derivatives=member.derivatives[:1] * steps,
        rows=None if member.rows is None else member.rows[:1],
    )
    one = replace(group.part(0, 1), members=[whole], lr_factor=1.0)
    sent, _ = prepared.algorithm.upload(trained[:1] - one.anchor, trained[:1], one)
    shapes = {name: torch.empty_like(value[0], device="meta") for name, value in sent.items()}
    return shapes, sum(len(derivatives) for derivatives in member.derivatives[:1])


class _Plan:
    """The rounds of a run, as far as they are known before it begins."""

    def __init__(self, prepared: Prepared, update: Mapping[str, Tensor], directions: int) -> None:
        self._prepared, self._update, self._directions = prepared, update, directions
        self._algorithm, self._layout = prepared.algorithm, prepared.binding.layout
        self._experiment = prepared.experiment
        self._states: dict[int, dict[str, Tensor]] = {}
        choice = make_choice(prepared)
        self._layers = choice.plan if isinstance(choice, ChosenLayers) else None
        awaits = self._algorithm.awaits() if self._algorithm.asynchronous else None
        clients = {int(k): prepared.train.clients[k] for k in prepared.seen}
        self._schedule = make_schedule(
            self._experiment.federation.model_copy(update={"wait": None}), clients, awaits,
            selector=Uniform(), sizes=prepared.train.sizes[prepared.seen], seed=self._experiment.seed,
        )  # fmt: skip
        self.asked = sum(map(len, self._schedule.round(1).started.values()))

    def notes(self) -> Iterator[str]:
        """Where nobody can know yet."""
        if self._experiment.devices is not None or self._experiment.federation.selection["name"] != "uniform":
            yield "about: as if clients were drawn uniformly, and none went offline or was late"
        pacing = getattr(self._experiment.local.gradient, "pacing", None)
        if sends_seeds(self._prepared) and isinstance(pacing, VariancePacing | SnrPacing):
            yield f"up is at most this: {pacing.kind} pacing stops as soon as it has directions enough"
        if self._layers is not None and isinstance(self._layers.settings, PriorityLayers):
            sizes = dict.fromkeys(layers_of(self._layout), 0)
            for part in self._layout.slices:
                if part.layer is not None:
                    sizes[part.layer] += part.size
            if len(set(sizes.values())) > 1:
                yield "about: layers differ in size, and which will train is not known yet"

    def round(self, number: int) -> tuple[int, int]:
        """Bytes down and up."""
        down = up = 0
        for version, clients in self._schedule.round(number).started.items():
            sent = self._sent(version)
            each = broadcast(self._prepared, sent, version + 1)[1]
            down += bytes_down_of(self._prepared, sent, version + 1, clients, each)
            up += sum(self._up(version + 1, mask, theirs) for mask, theirs in self._shares(version + 1, clients))
        return down, up

    def _sent(self, version: int) -> dict[str, Tensor]:
        """What goes to the clients that start from a version, in shape."""
        w = self._prepared.initial
        server = self._after(version)
        sent = {"w": w, **self._algorithm.broadcast(w, server)}
        if self._layers is not None:
            sent[CHOSEN] = self._chosen(version + 1).to(torch.uint8)
        if version and getattr(self._experiment.local.gradient, "guidance", "none") != "none":
            sent[PREVIOUS] = torch.zeros_like(w)
        return sent

    @cached_property
    def _first(self) -> dict[str, Tensor]:
        return self._algorithm.server_state(self._prepared.initial, self._layout)

    def _after(self, version: int) -> dict[str, Tensor]:
        """The server's state when it has made a version, from made-up updates where what it sends may depend on them."""
        if not version or type(self._algorithm).broadcast is Algorithm.broadcast or not self._algorithm.federated:
            return self._first
        if self._prepared.ranks is None or self._algorithm.asynchronous:
            version = 1  # all are alike
        if version not in self._states:
            (clients,) = self._schedule.round(version).started.values()
            self._states[version] = self._applied(clients)
        return self._states[version]

    def _applied(self, clients: Sequence[int]) -> dict[str, Tensor]:
        """The server's state after a round of made-up updates of these clients."""
        w, fold = self._prepared.initial, self._algorithm.combine(self._layout)
        generator, partial = torch.Generator().manual_seed(0), fold.empty()
        for k in clients:
            made_up = {name: torch.randn(v.shape, generator=generator) * _SMALL for name, v in self._update.items()}
            start = w
            if self._prepared.ranks is not None:
                (has,) = rank_masks(self._prepared, [k])
                start, made_up = w * has, {n: v * has if v.shape == has.shape else v for n, v in made_up.items()}
            partial = fold.add(partial, made_up, 1.0, start)
        facts = Round(1, len(clients), len(self._prepared.seen), self._layout, experiment=self._experiment)
        return self._algorithm.apply(w, fold.finish(partial), self._first, facts)[1]

    def _chosen(self, number: int) -> Tensor:
        """`[L]`: which layers train in a round; by priority, as many as will."""
        assert self._layers is not None
        own = self._layers.settings
        scored = isinstance(own, PriorityLayers) and (number > 1 or own.seen_by == "held_out")
        return self._layers.choose(number, torch.arange(len(self._layers.layers)).float() if scored else None)

    def _shares(self, number: int, clients: Any) -> Any:
        if self._layers is None:
            return [(None, clients)]
        return self._layers.shares(self._chosen(number), clients, number)

    def _up(self, number: int, layers: Tensor | None, clients: Any) -> int:
        """The bytes that these clients send, who train the same layers."""
        work = Assignment(number, self._prepared.initial, 1.0, layers=layers)
        ranks = self._prepared.ranks
        counts: dict[int | None, int | None] = {}
        for k in clients:
            rank = None if ranks is None else ranks[k]
            if rank not in counts:
                (entries,) = sent_entries(self._prepared, work, [k])
                counts[rank] = None if entries is None else int(entries.sum())
        return sum(self._message(number, k, counts[None if ranks is None else ranks[k]]) for k in clients)

    def _message(self, number: int, client: int, entries: int | None) -> int:
        """The bytes of a client's message, of whose vector so many entries travel; None for all."""
        scores = {}
        own = None if self._layers is None else self._layers.settings
        if isinstance(own, PriorityLayers) and own.seen_by == "clients" and self._layers.scores_due(number):  # type: ignore[union-attr]
            scores = {SCORES: torch.empty(len(self._layers.layers), 1, device="meta")}  # type: ignore[union-attr]
        if not (self._update or scores) or not self._algorithm.federated:
            return 0
        facts = self._facts(number, client)
        if sends_seeds(self._prepared):
            count = facts["steps"] * self._directions_in(number)
            return encoded_size(
                Seeds(**facts, directions=count), {"derivatives": torch.empty(count, device="meta"), **scores}
            )
        shapes = {**self._update, **scores}
        if entries is not None:
            whole = (self._layout.n,)
            shapes = {n: torch.empty(entries, device="meta") if v.shape == whole else v for n, v in shapes.items()}
        return encoded_size(Update(**facts), shapes)

    def _directions_in(self, number: int) -> int:
        gradient = self._experiment.local.gradient
        assert isinstance(gradient, Directional)
        if isinstance(gradient.pacing, VariancePacing | SnrPacing):
            return gradient.pacing.cap
        if isinstance(gradient.pacing, SchedulePacing):
            return gradient.pacing.directions[min(number, len(gradient.pacing.directions)) - 1]
        return self._directions

    def _facts(self, number: int, client: int) -> dict[str, Any]:
        """What a header says, in as many digits."""
        prepared, local = self._prepared, self._experiment.local
        rows = prepared.train.rows(client)
        steps = steps_of(len(rows), local, prepared.step_scale)
        samples = steps * min(len(rows), local.batch_size * local.accumulate)
        return {
            "layout": self._layout.digest,
            "round": number,
            "client": prepared.train.clients[client],
            "weight": client_weight(prepared, client),
            "samples": samples,
            "tokens": round(samples * float(prepared.table.lengths[rows].mean())),
            "steps": steps,
            "train_loss": _A_LOSS,
        }
