"""Each client alone: the yardstick from below.

w_k <- w_k after client k's local steps; nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from fedloom.algorithms.base import Algorithm, Cost

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["Local"]


class Local(Algorithm):
    """Every client goes on from its own vector and is judged with it."""

    title: ClassVar[str] = "Each client alone"
    paper: ClassVar[str] = "a yardstick, not a method"
    family: ClassVar[str] = "yardsticks"
    cost: ClassVar[Cost] = Cost(up="none", down="none", state="1 vector")
    roles: ClassVar[frozenset[str]] = frozenset({"everything"})
    federated: ClassVar[bool] = False
    personal: ClassVar[bool] = True

    def private(self, layout: Layout) -> Tensor | None:
        return layout.mask(lambda _: True)

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        return {}, {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        return w.new_zeros(w.shape), server
