"""What the clients of a round are asked for, before anything is trained: bytes to receive, passes to compute, bytes to send.

    passes = samples * (1 + 2 * share of the layers on the way back)      with backpropagation
             samples * (2 N)  or  samples * N + samples                   with N directions: jvp and central, or forward

times what the algorithm does beside plain training (`Algorithm.work`). Bytes are those of messages with the shapes that the
round's have; a header may be a few digits off. Where directions are paced, N is what pacing begins with; where the clients of a
round divide the layers, each is taken to train them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.codec.wire import Seeds, Update, encoded_size
from fedloom.config.gradient import Directional, Forward, SchedulePacing
from fedloom.devices.population import Work
from fedloom.engines.broadcast import broadcast, bytes_down_of
from fedloom.engines.group import Assignment, sent_entries
from fedloom.engines.messages import declared
from fedloom.engines.seeds import sends_seeds
from fedloom.local.batches import samples_of
from fedloom.local.opening import trained_entries
from fedloom.local.prepare import Prepared
from fedloom.vector.lora import rank_mask

__all__ = ["planned_work"]


def planned_work(prepared: Prepared, sent: Mapping[str, Tensor], number: int, layers: Tensor | None) -> Work:
    """The work of a round, counted from 1, in which `layers`, `[n]`, train; arrays are in the order of `prepared.seen`."""
    sizes, ranks = prepared.train.sizes[prepared.seen], prepared.ranks
    steps, samples = samples_of(sizes, prepared.experiment.local, prepared.step_scale)
    plain = samples.astype(np.float64)
    passes = prepared.algorithm.work(plain, sizes.astype(np.float64), plain / steps) * _passes(prepared, number, layers)
    if not prepared.algorithm.federated:
        return Work(0.0, passes, 0.0)
    if ranks is None:
        up = _seeds(prepared, number, steps) if sends_seeds(prepared) else _up(prepared, number, layers, None)
        return Work(broadcast(prepared, sent, number)[1], passes, up)
    own = np.asarray(ranks)[prepared.seen]
    down, up = np.empty(len(own)), np.empty(len(own))
    for rank in np.unique(own).tolist():
        has = rank_mask(prepared.binding.layout, rank)
        down[own == rank] = bytes_down_of(prepared, sent, number, [ranks.index(rank)], 0)
        up[own == rank] = _up(prepared, number, layers, has)
    return Work(down, passes, up)


def _passes(prepared: Prepared, number: int, layers: Tensor | None) -> float:
    """Forward passes over a sample, or what costs as much."""
    gradient = prepared.experiment.local.gradient
    if not isinstance(gradient, Directional):
        return 1 + 2 * prepared.binding.reach(trained_entries(prepared, number, layers))
    count = _directions(gradient, number)
    return count + 1 if isinstance(gradient, Forward) else 2 * count


def _directions(gradient: Directional, number: int) -> int:
    if isinstance(gradient.pacing, SchedulePacing):
        return gradient.pacing.directions[min(number, len(gradient.pacing.directions)) - 1]
    return gradient.directions


def _facts(prepared: Prepared, number: int) -> dict[str, Any]:
    """A header's, of no client in particular."""
    facts = {
        "client": prepared.train.clients[0],
        "weight": 1.0,
        "samples": 1,
        "tokens": 1,
        "steps": 1,
        "train_loss": 1.0,
    }
    return {"layout": prepared.binding.layout.digest, "round": number} | facts


def _up(prepared: Prepared, number: int, layers: Tensor | None, has: Tensor | None) -> float:
    """The bytes of an update, of whose vectors only the entries that a client `has`, `[n]`, travel."""
    work = Assignment(number, prepared.initial, 1.0, layers=layers)
    (entries,) = sent_entries(prepared, work, [0]) if has is None else (_also(has, prepared, number, layers),)
    shapes = declared(prepared, entries, None)
    tensors = {name: torch.empty(shape, dtype=kind, device="meta") for name, (kind, shape) in shapes.items()}
    return float(encoded_size(Update(**_facts(prepared, number)), tensors))


def _also(has: Tensor, prepared: Prepared, number: int, layers: Tensor | None) -> Tensor:
    trained = trained_entries(prepared, number, layers)
    return has if trained is None else has & trained


def _seeds(prepared: Prepared, number: int, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[N]`: the bytes of each client's derivatives."""
    gradient = prepared.experiment.local.gradient
    assert isinstance(gradient, Directional)
    sizes = np.empty(len(steps))
    for count in np.unique(steps).tolist():
        directions = count * _directions(gradient, number)
        header = Seeds(**_facts(prepared, number), directions=directions)
        sizes[steps == count] = encoded_size(header, {"derivatives": torch.empty(directions, device="meta")})
    return sizes
