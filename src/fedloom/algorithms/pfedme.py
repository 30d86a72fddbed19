"""pFedMe (Dinh et al. 2020, algorithm 1).

    theta ~ argmin_theta f_k(theta; batch) + lambda / 2 ||theta - w_k||^2        a few gradient steps from w_k
    w_k   <- w_k - eta lambda (w_k - theta)                                      a local step
    w     <- (1 - beta) w + beta mean_k w_k                                      on the server

theta is the client's own vector, eta the local learning rate. The paper's mean counts clients alike
(`federation.weighting: uniform`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.demands import without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, Samples, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["PFedMe"]


class PFedMe(Algorithm):
    """Local steps along the gradient of the Moreau envelope."""

    title: ClassVar[str] = "Moreau envelopes"
    paper: ClassVar[str] = "Dinh et al. 2020, Personalized Federated Learning with Moreau Envelopes, arXiv:2006.08848"
    equation: ClassVar[str] = "algorithm 1"
    family: ClassVar[str] = "personalisation"
    cost: ClassVar[Cost] = Cost(state="1 vector", compute="`inner` gradients a step")
    roles: ClassVar[frozenset[str]] = frozenset({"gradient correction", "server step", "what clients are judged with"})
    personal: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {"algorithm.inner_lr": 0.05, "evaluation.clients_every": 1}

    strength: float = Field(
        15.0, ge=0, description="The paper's lambda: how strongly theta is drawn to w; it takes 15 to 30."
    )
    inner: int = Field(5, ge=1, description="Gradient steps that look for theta (the paper's K, 5).")
    inner_lr: float = Field(
        0.01, gt=0, description="Rate of those steps, below 2 / lambda; the paper's code takes 0.01 to 0.1."
    )
    beta: float = Field(1.0, gt=0, description="How far the server moves towards the mean; the paper tries 1 to 4.")

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "a local step is eta lambda (w - theta), and theta is found along the bare gradient"
        yield from without(experiment.local, ("optimizer", "momentum", "weight_decay", "clip"), why)
        if self.inner_lr * self.strength >= 2:
            what = f"inner_lr x strength is {self.inner_lr * self.strength:g}, with which theta diverges"
            yield "algorithm.inner_lr", what, f"Set it below {2 / self.strength:g}"

    def client_state(self, w: Tensor, layout: Layout) -> State:
        return {"pfedme.theta": w}

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        theta = w
        for i in range(self.inner):
            own = g if i == 0 else group.at(theta)
            theta = theta - self.inner_lr * group.moving(own + self.strength * (theta - w))
        group.state["pfedme.theta"][:] = theta
        return self.strength * (w - theta)

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        return {"delta": delta}, {"pfedme.theta": group.state["pfedme.theta"]}

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return self.inner * plain

    def judged(self, group: Group) -> Tensor:
        return group.state["pfedme.theta"]

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        return self.beta * aggregate["delta"], server
