"""The parts of an algorithm, in the order data meets them, each with FedAvg's answer.

A method is a file in this folder: its paper and formula on top, then only the parts in which it differs. Its options are its
annotated fields, typed and strict, set by `algorithm: {name: ..., option: value}`.

n is the length of the trainable vector, K the clients of a group; a client's state is a row of `[K, ...]` tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.aggregation.mean import Mean

    State = dict[str, Tensor]

__all__ = ["Algorithm"]


class Algorithm(BaseModel):
    """One round's computation; every method is pure: it returns new tensors and leaves its inputs as they were."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: ClassVar[str]
    paper: ClassVar[str]
    personal: ClassVar[bool] = False
    """Whether a client is judged with a vector of its own (in its state, under `own`) rather than the server's."""
    federated: ClassVar[bool] = True
    """Whether anything travels; false for the yardsticks, whose bytes are none."""
    pooled: ClassVar[bool] = False
    """Whether all clients' rows are pooled into one client first."""

    def client_state(self, w: Tensor) -> State:
        """What a client keeps between rounds, as it is before its first round; `w` is the server's first vector, `[n]`."""
        return {}

    def server_state(self, w: Tensor) -> State:
        """What the server keeps between rounds, as it is before the first."""
        return {}

    def broadcast(self, w: Tensor, state: State, k: int) -> Tensor:
        """`[K, n]`: where each of k clients starts, from the server's vector `[n]` and the clients' state."""
        return w.expand(k, -1)

    def gradient(self, g: Tensor, w: Tensor, anchor: Tensor, state: State) -> Tensor:
        """`[K, n]`: the direction of a local step, from the gradient, the present rows and the rows the clients started from."""
        return g

    def upload(self, delta: Tensor, w: Tensor, state: State) -> tuple[Tensor | None, State]:
        """What leaves the clients, `[K, n]` or nothing, and their new state; `w` are the trained rows, delta = w - anchor."""
        return delta, state

    def combine(self) -> Mean:
        """The fold over updates."""
        from fedloom.aggregation.mean import Mean

        return Mean()

    def apply(self, w: Tensor, aggregate: Tensor, state: State) -> tuple[Tensor, State]:
        """The server's next vector and state, from the combined update `[n]`."""
        return w + aggregate, state
