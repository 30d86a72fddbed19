"""A group in a round, as an algorithm sees it: who starts where, what each keeps, and what local computation it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedloom.errors import ClientError
from fedloom.tasks.base import Rows
from fedloom.vector.layout import Layout

if TYPE_CHECKING:
    from fedloom.local.train import Trainer
    from fedloom.vector.directions import DirectionStream

__all__ = ["Group", "Member", "Rule", "State"]

State = dict[str, Tensor]


@dataclass
class Member:
    """A client in a group: its rows, its steps of micro-batches, and what training reports of it."""

    client: str
    steps: list[list[Rows]]
    rows: Rows | None = None
    loss: float = float("nan")
    tokens: int = 0
    samples: int = 0
    forwards: int = 0
    """Forward passes over one example, or what costs as much."""
    directions: int = 0
    """Random directions along which it has differentiated."""
    derivatives: list[Tensor] = field(default_factory=list, repr=False)
    """Those of each step, `[N]`."""
    squares: float | None = None
    """The sum of the squares of its samples' losses, where that is asked for."""
    failure: ClientError | None = field(default=None, repr=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What a client says of its training."""
        return {"samples": self.samples, "tokens": self.tokens, "steps": len(self.steps), "train_loss": self.loss}


@dataclass
class Group:
    """K clients, sorted by their number of steps, most first. Tensors have a row a client and lie on the model's device.

    Within a gradient rule it is the part of the group that is still training: its first rows.
    """

    trainer: Trainer = field(repr=False)
    members: Sequence[Member]
    anchor: Tensor
    """`[K, n]`: where each client starts."""
    round: int
    state: State = field(default_factory=dict)
    """What each client kept from its last round; a rule may write into the rows it is given."""
    server: State = field(default_factory=dict)
    """What the server sent beside the vector; no row a client here."""
    memory: dict[str, State] = field(default_factory=dict)
    """The states of the clients' optimizers by name: those they go on from, then those they end with."""
    trains: Tensor | None = None
    """The entries, `[n]`, that local steps move; None for all."""
    private: Tensor | None = None
    """The entries, `[n]`, that never leave a client; None for none."""
    reference: Tensor | None = None
    """The server's last update, `[n]`, where directions are guided by it; None before there is one."""
    stream: Callable[[str, int], DirectionStream] | None = field(default=None, repr=False)
    """`stream(client, step)`: the directions of a step, where the algorithm says which; else the estimator's own."""
    lr_factor: float = 1.0
    total: int = 1
    """Clients of the federation: N."""
    at: Callable[..., Tensor] = field(default=lambda *_: torch.empty(0), repr=False)
    """Within a rule: `at(rows, ahead=0)`, `[K, n]`, the gradient at other rows on this step's batch, or on one `ahead` of it."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def layout(self) -> Layout:
        return self.trainer.binding.layout

    @property
    def lr(self) -> float:
        """The local learning rate of this round."""
        return self.trainer.local.lr * self.lr_factor

    @property
    def travels(self) -> Tensor | None:
        """The entries, `[n]`, that move and travel back; None for all."""
        if self.private is None:
            return self.trains
        return ~self.private if self.trains is None else self.trains & ~self.private

    @property
    def steps(self) -> Tensor:
        """`[K, 1]`: the local steps of each client."""
        counts = [len(member.steps) for member in self.members]
        return torch.tensor(counts, dtype=torch.float32, device=self.anchor.device).unsqueeze(1)

    def train(
        self,
        rows: Tensor,
        rule: Rule,
        *,
        only: Tensor | None = None,
        steps: int | None = None,
        optimizer: str = "optimizer",
    ) -> Tensor:
        """`[K, n]`: rows after the clients' local steps, with the local optimizer, along `rule(g, w, group)`.

        only: entries `[n]` that move; by default those the algorithm trains. steps: that many, over the clients' batches again
        and again, rather than their own number. optimizer: a second training keeps a state of its own under another name.
        """
        return self.trainer.train(self, rows, rule, only=only, steps=steps, name=optimizer)

    def moving(self, direction: Tensor) -> Tensor:
        """`[K, n]`: a direction, zero at the entries that local steps do not move."""
        return direction if self.trains is None else direction * self.trains

    def losses(self, rows: Tensor) -> Tensor:
        """`[K, 1]`: each client's mean loss over all its rows of data."""
        return self.trainer.whole(self, rows, gradients=False)[0]

    def gradients(self, rows: Tensor) -> Tensor:
        """`[K, n]`: the gradient of each client's mean loss over all its rows of data."""
        return self.trainer.whole(self, rows, gradients=True)[1]

    def part(self, start: int, end: int) -> Group:
        """The members from start to end, as views."""
        rows = slice(start, end)
        return replace(
            self,
            members=self.members[rows],
            anchor=self.anchor[rows],
            state={name: values[rows] for name, values in self.state.items()},
            memory={name: {k: v[rows] for k, v in own.items()} for name, own in self.memory.items()},
        )


Rule = Callable[[Tensor, Tensor, Group], Tensor]
"""The direction of a local step, `[K, n]`, from the gradient, the present rows and the group."""
