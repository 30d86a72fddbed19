"""Updates made again from derivatives alone: the same steps from the same start, along directions drawn again from the seed.

What a client sends is s, the float32 derivatives of all its steps, 4 bytes a direction. The keys of the directions follow from
(seed, round, client, step), so they are not sent. The replay runs the trainer's own code with s read instead of measured, so it
has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedloom.codec.wire import Seeds
from fedloom.config.gradient import Directional, SchedulePacing, SnrPacing, VariancePacing
from fedloom.errors import FedloomError
from fedloom.local.derivatives import Derivatives
from fedloom.local.estimate import ByDirections
from fedloom.local.group import Group, Member
from fedloom.tasks.base import Rows

if TYPE_CHECKING:
    from fedloom.algorithms.base import Algorithm

__all__ = ["check_count", "derivatives_of", "most_directions", "rebuild"]


def derivatives_of(member: Member) -> Tensor:
    """What a member sends: the derivatives of its steps, one after the other, `[directions]`."""
    return torch.cat(member.derivatives)


def most_directions(config: Directional) -> int:
    """The most directions that a step can take."""
    pacing = config.pacing
    if isinstance(pacing, VariancePacing | SnrPacing):
        return pacing.cap
    return max(pacing.directions) if isinstance(pacing, SchedulePacing) else config.directions


def check_count(header: Seeds, config: Directional) -> None:
    """Refuse more derivatives than a client's steps can have, before room is made for them."""
    each = most_directions(config)
    if header.directions > header.steps * each:
        what = f"{header.directions} directions are more than {header.steps} steps of at most {each} have"
        raise FedloomError("a message was refused", why=what)


def rebuild(group: Group, algorithm: Algorithm, received: Sequence[Tensor]) -> Tensor:
    """`[K, n]`: where the members ended whose derivatives these are.

    Raises FedloomError when a member's derivatives are too few or too many for its steps.
    """
    config = group.trainer.local.gradient
    assert isinstance(config, Directional)
    trainer = replace(group.trainer)
    replay = _Replay(trainer, config)
    members = [Member(m.client, m.steps, m.rows) for m in group.members]
    replay.left = {m.client: values.clone() for m, values in zip(members, received, strict=True)}
    trainer.estimator = replay
    again = replace(group, trainer=trainer, members=members, memory={})
    rows = algorithm.train(again, algorithm.gradient)
    if extra := {client: len(values) for client, values in replay.left.items() if len(values)}:
        client, count = next(iter(extra.items()))
        raise _unfit(client, f"{count} derivatives are left over after its last step")
    return rows


def _unfit(client: str, why: str) -> FedloomError:
    return FedloomError(f"the message of client {client!r} was refused", why=why)


@dataclass
class _Replay(ByDirections):
    """The estimate from derivatives that were received."""

    left: dict[str, Tensor] = field(default_factory=dict)

    def _derivatives(self, group: Group, parts: Sequence[list[Rows]], w: Tensor, only: Tensor | None) -> Derivatives:
        return _Received([m.client for m in group.members], self.left, w.device)


class _Received:
    """Derivatives read one after the other."""

    def __init__(self, clients: Sequence[str], left: dict[str, Tensor], device: torch.device) -> None:
        self._clients, self._left, self._device = clients, left, device

    def along(self, v: Tensor, owners: Sequence[int]) -> Tensor:
        """See `Derivatives.along`."""
        found = torch.empty(len(owners))
        for k in dict.fromkeys(owners):
            rows, client = [i for i, owner in enumerate(owners) if owner == k], self._clients[k]
            values = self._left[client]
            if len(values) < len(rows):
                raise _unfit(client, "its derivatives are too few for its steps")
            found[rows], self._left[client] = values[: len(rows)], values[len(rows) :]
        return found.to(self._device)

    def losses(self) -> Tensor:
        """See `Derivatives.losses`; the client has told its own."""
        return torch.zeros(len(self._clients), device=self._device)
