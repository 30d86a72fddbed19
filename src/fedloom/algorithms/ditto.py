"""Ditto (Li et al. 2021, algorithm 1).

    v_k <- v_k - eta (grad f_k(v_k) + lambda (v_k - w^t))

w^t is the server's vector at the round's start, which is trained and averaged as if there were no v_k; v_k is client k's own
vector. It is w^t when the client trains for the first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Samples, State
    from fedloom.local.group import Group, Rule
    from fedloom.vector.layout import Layout

__all__ = ["Ditto"]


class Ditto(Algorithm):
    """A vector of each client's own, drawn towards the server's."""

    title: ClassVar[str] = "Ditto"
    paper: ClassVar[str] = (
        "Li et al. 2021, Ditto: Fair and Robust Federated Learning Through Personalization, arXiv:2012.04221"
    )
    equation: ClassVar[str] = "algorithm 1"
    family: ClassVar[str] = "personalisation"
    cost: ClassVar[Cost] = Cost(state="1 vector", compute="1 more local training")
    roles: ClassVar[frozenset[str]] = frozenset({"local steps", "what clients are judged with"})
    personal: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {"algorithm.strength": 1.0, "evaluation.clients_every": 1}

    strength: float = Field(
        0.1,
        ge=0,
        description="The paper's lambda: how strongly v is drawn to w; it tries 0.05 to 2. 0 trains each alone.",
    )
    steps: int | None = Field(
        None, ge=1, description="Steps of v a round; as many as the client's other local steps when left out."
    )

    def client_state(self, w: Tensor, layout: Layout) -> State:
        return {"ditto.v": w}

    def train(self, group: Group, rule: Rule) -> Tensor:
        def towards_server(g: Tensor, v: Tensor, now: Group) -> Tensor:
            return g + self.strength * (v - now.anchor)

        group.state["ditto.v"][:] = group.train(
            group.state["ditto.v"], towards_server, steps=self.steps, optimizer="personal"
        )
        return group.train(group.anchor, rule)

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        return {"delta": delta}, {"ditto.v": group.state["ditto.v"]}

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return plain + (plain if self.steps is None else self.steps * step)

    def judged(self, group: Group) -> Tensor:
        return group.state["ditto.v"]
