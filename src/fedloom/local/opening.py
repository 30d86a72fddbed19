"""Opening a group: every client's start, from the server's vector and what the client kept; and what it keeps afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedloom.errors import CheckpointError
from fedloom.local.group import Group, State
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore
from fedloom.local.train import Trainer
from fedloom.vector.lora import rank_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PREVIOUS", "kept_state", "open_group", "rank_masks", "trained_entries"]

PREVIOUS = "previous update"
"""What the server's last update is called, where directions are guided by it: in its state, and beside the vector it sends."""


def open_group(
    prepared: Prepared,
    store: ClientStore,
    trainer: Trainer,
    clients: Sequence[int],
    w: Tensor,
    server: Mapping[str, Tensor],
    *,
    round: int,
    before: int,
    lr_factor: float = 1.0,
    layers: Tensor | None = None,
    batches: int | None = None,
    stretch: Mapping[int, int] | None = None,
) -> tuple[Group, list[int]]:
    """The group of these clients in a round, with their state as it was before round `before`; and the clients in its order.

    batches: the round whose batches they take, if another; stretch: how many times their usual steps clients take, if not once.
    """
    algorithm, layout, device = prepared.algorithm, prepared.binding.layout, prepared.binding.device
    more = stretch or {}
    planned = {
        k: trainer.member(prepared.train, k, batches or round, prepared.step_scale, more.get(k, 1)) for k in clients
    }
    order = sorted(clients, key=lambda k: -len(planned[k].steps))  # stable: those alike stay in the order given
    private = algorithm.private(layout)
    fresh = algorithm.client_state(w, layout)
    if private is not None:
        fresh["private"] = w[private]
    keeps = prepared.experiment.local.optimizer_state == "keep"
    states = [store.load(prepared.train.clients[k], before) or {} if fresh or keeps else {} for k in order]
    for k, own in zip(order, states, strict=True):
        _check_fits(prepared.train.clients[k], own, fresh)
    state = {key: torch.stack([s.get(key, fresh[key]) for s in states]).to(device) for key in fresh}
    anchor = w.to(device).expand(len(order), -1)
    if private is not None:
        anchor = anchor.clone()
        anchor[:, private] = state["private"]
    if prepared.ranks is not None:
        anchor = anchor * rank_masks(prepared, order).to(device)
    trains = trained_entries(prepared, round, layers)
    group = Group(
        trainer=trainer,
        members=[planned[k] for k in order],
        anchor=anchor,
        round=round,
        state=state,
        server={key: value.to(device) for key, value in server.items()},
        trains=None if trains is None else trains.to(device),
        private=None if private is None else private.to(device),
        reference=server[PREVIOUS].to(device) if PREVIOUS in server else None,
        lr_factor=lr_factor,
        total=len(prepared.seen),
    )
    if keeps:
        group.memory = _memories(trainer, states, anchor)
    return group, order


def trained_entries(prepared: Prepared, round: int, layers: Tensor | None) -> Tensor | None:
    """The entries, `[n]`, that local steps of a round move: what the algorithm trains, in these `layers`, `[n]`; None: all."""
    own = prepared.algorithm.trains(prepared.binding.layout, round)
    if own is None or layers is None:
        return layers if own is None else own
    return own & layers


def rank_masks(prepared: Prepared, clients: Sequence[int]) -> Tensor:
    """`[K, n]`: the entries that each client has, where they differ in rank.

    What a client lacks begins at zero in both factors, so its gradient is zero and it stays there.
    """
    assert prepared.ranks is not None
    made = {rank: rank_mask(prepared.binding.layout, rank) for rank in {prepared.ranks[k] for k in clients}}
    return torch.stack([made[prepared.ranks[k]] for k in clients])


def _check_fits(client: str, own: State, fresh: State) -> None:
    for key, value in own.items():
        if key in fresh and value.shape != fresh[key].shape:
            raise CheckpointError(
                f"the state of client {client!r} is of another layout",
                why=f"its {key!r} has shape {list(value.shape)}, this model's has {list(fresh[key].shape)}",
                fix="resume with the model, adapter and algorithm it was made with",
            )


def _memories(trainer: Trainer, states: Sequence[State], anchor: Tensor) -> dict[str, State]:
    """The states of the optimizers that clients kept, by optimizer; a client's first round starts afresh."""
    fresh = trainer.fresh_memory(anchor[:1])
    names = sorted({key.split(".")[1] for s in states for key in s if key.startswith("optimizer.")})
    return {
        name: {
            key: torch.stack([s.get(f"optimizer.{name}.{key}", first[0].cpu()) for s in states]).to(anchor.device)
            for key, first in fresh.items()
        }
        for name in names
    }


def kept_state(prepared: Prepared, group: Group, trained: Tensor, kept: State, k: int) -> State:
    """What the k-th client of a group keeps after its round."""
    state = {name: values[k] for name, values in kept.items()}
    private = prepared.algorithm.private(group.layout)
    if private is not None:
        state["private"] = trained[k][private]
    if prepared.experiment.local.optimizer_state == "keep":
        for name, memory in group.memory.items():
            state |= {f"optimizer.{name}.{key}": values[k] for key, values in memory.items()}
    return state
