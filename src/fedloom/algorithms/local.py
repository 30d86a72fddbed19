"""Each client alone: the yardstick from below.

w_k <- w_k after client k's local steps; nothing is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedloom.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import State

__all__ = ["Local"]


class Local(Algorithm):
    """Every client goes on from its own vector and is judged with it."""

    title: ClassVar[str] = "Each client alone"
    paper: ClassVar[str] = "a yardstick, not a method"
    federated: ClassVar[bool] = False
    personal: ClassVar[bool] = True

    def client_state(self, w: Tensor) -> State:
        return {"own": w}

    def broadcast(self, w: Tensor, state: State, k: int) -> Tensor:
        return state["own"]

    def upload(self, delta: Tensor, w: Tensor, state: State) -> tuple[Tensor | None, State]:
        return None, {"own": w}
