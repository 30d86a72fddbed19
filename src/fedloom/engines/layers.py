"""The server's part in choosing layers: what trains next, from which scores, and that nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from fedloom.config.layers import LayerSelection, PriorityLayers
from fedloom.engines.group import Assignment
from fedloom.errors import UsageError
from fedloom.local.prepare import Prepared
from fedloom.local.scores import SCORES, chosen, layer_scores, server_gradient
from fedloom.local.train import make_trainer
from fedloom.selection.layers import LayerPlan, make_plan

__all__ = ["CHOSEN", "GRADIENT", "ChosenLayers", "LayerChoice", "make_choice"]

CHOSEN = "layers.chosen"
"""The server's state: which layers `[L]` train in the next round. It is sent with the vector."""
GRADIENT = "layers.gradient"
"""The server's own gradient `[n]` at its vector, kept for an algorithm that moves all layers."""
_OWN = (CHOSEN, SCORES, GRADIENT)

State = dict[str, Tensor]


class LayerChoice:
    """What the round loop asks of a choice of layers; here it is all of them, in every round, and nothing is done for it."""

    def parts(self, work: Assignment, clients: Sequence[int]) -> Iterator[tuple[Assignment, Sequence[int]]]:
        """The clients that train the same layers, with what they are asked."""
        yield work, clients

    def mask(self, server: State, round: int) -> Tensor | None:
        """The entries, `[n]`, of the layers that train in a round, on one client or another; None for all."""
        return None

    def hold(self, step: Tensor, server: State, earlier: State, trained: Tensor | None) -> tuple[Tensor, State]:
        """The server's step and state, in which the entries that nobody trained stay as they were; `trained` None is all."""
        return step, server

    def after(self, round: int, w: Tensor, server: State, earlier: State, aggregate: Mapping[str, Tensor]) -> State:
        """The server's state after a round (0: before the first), with what trains in the next; `earlier` is that before it."""
        return server

    def records(self, round: int, masks: Sequence[tuple[Tensor, int]], server: State) -> list[dict[str, Any]]:
        """A record a layer: how many clients trained it, and the score by which it was chosen; none where all layers train."""
        return []


class ChosenLayers(LayerChoice):
    """The layers of a plan, round after round; what must survive is in the server's state."""

    def __init__(self, prepared: Prepared, plan: LayerPlan) -> None:
        self.plan = plan
        self._prepared, self._algorithm = prepared, prepared.algorithm
        settings = plan.settings
        self._settings = settings if isinstance(settings, PriorityLayers) else None
        self._trainer = None
        if self._settings is not None and self._settings.seen_by == "held_out":
            self._trainer = make_trainer(prepared, grouped=False)
        elif self._settings is not None and not prepared.algorithm.federated:
            what = "clients send nothing with this algorithm, so nobody can compare their layers"
            raise UsageError(what, where="layers.seen_by", fix="set seen_by: held_out, or layers: all")

    def parts(self, work: Assignment, clients: Sequence[int]) -> Iterator[tuple[Assignment, Sequence[int]]]:
        """See `LayerChoice.parts`; where the clients score layers, they are asked for that too."""
        plan, scored = self.plan, None
        if self._settings is not None and self._trainer is None and plan.scores_due(work.round):
            scored = (self._settings.score, plan.layers)
        for mask, theirs in plan.shares(work.server[CHOSEN], clients, work.round):
            yield replace(work, layers=mask, divided=plan.divides, scored=scored), theirs

    def mask(self, server: State, round: int) -> Tensor | None:
        """See `LayerChoice.mask`; where clients divide the layers, all that any of them trains."""
        return None if self.plan.divides else self.plan.shares(server[CHOSEN], [0], round)[0][0]

    def after(self, round: int, w: Tensor, server: State, earlier: State, aggregate: Mapping[str, Tensor]) -> State:
        """See `LayerChoice.after`; scores that are due are taken from the aggregate, or from the server's own rows."""
        state = {name: value for name, value in earlier.items() if name in _OWN}
        seen = aggregate.get(SCORES)
        new = None if seen is None else seen.squeeze(1)
        if self._trainer is not None and (self.plan.scores_due(round + 1) or self._algorithm.moves_all):
            gradient = server_gradient(
                self._trainer, self._prepared.proxy, w, round + 1, self._prepared.experiment.seed
            )
            if self._algorithm.moves_all:
                state[GRADIENT] = gradient
            if self.plan.scores_due(round + 1):
                assert self._settings is not None
                new = layer_scores(self._prepared.binding, self._settings.score, gradient, w, self.plan.layers)
        if new is not None and self._settings is not None:
            old, keep = state.get(SCORES), self._settings.smoothing
            state[SCORES] = new if old is None else keep * old + (1 - keep) * new
        state[CHOSEN] = self.plan.choose(round + 1, state.get(SCORES)).to(torch.uint8)
        return {**server, **state}

    def hold(self, step: Tensor, server: State, earlier: State, trained: Tensor | None) -> tuple[Tensor, State]:
        """See `LayerChoice.hold`; an algorithm that moves all layers is let."""
        if trained is None or self._algorithm.moves_all:
            return step, server
        held = {
            name: torch.where(trained, value, earlier[name])
            if value.shape == trained.shape and name in earlier and earlier[name].shape == value.shape
            else value
            for name, value in server.items()
        }
        return step * trained, held

    def records(self, round: int, masks: Sequence[tuple[Tensor, int]], server: State) -> list[dict[str, Any]]:
        """See `LayerChoice.records`."""
        scores: Sequence[float | None] = [None] * len(self.plan.layers)
        if SCORES in server:
            scores = server[SCORES].tolist()
        return [
            {"round": round, "layer": layer, "trained": count, "score": score}
            for layer, count, score in zip(self.plan.layers, self.plan.trained(masks), scores, strict=True)
        ]


def make_choice(prepared: Prepared) -> LayerChoice:
    """The choice of layers of a prepared run.

    Raises UsageError for what the model has not, ModelError for an expression that matches nothing.
    """
    experiment, layout = prepared.experiment, prepared.binding.layout
    try:
        plan = make_plan(cast("LayerSelection", chosen(prepared)), layout, experiment.seed)
    except UsageError as error:
        if prepared.algorithm.layers(experiment) is None:
            raise
        fix = "lower the numbers of layers that the algorithm is given"  # the file's `layers` says nothing here
        raise UsageError(error.what, where="algorithm", why=error.why, fix=fix) from error
    return LayerChoice() if plan is None else ChosenLayers(prepared, plan)
