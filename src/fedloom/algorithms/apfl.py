"""APFL (Deng et al. 2020, algorithm 1): each client mixes a vector of its own with the shared one.

    v-bar_k  =  alpha_k v_k + (1 - alpha_k) w_k
    w_k      <- w_k - eta grad f_k(w_k)
    v_k      <- v_k - eta alpha_k grad f_k(v-bar_k)                     the gradient in v_k of f_k(v-bar_k)
    alpha_k  <- alpha_k - eta <v_k - w_k, grad f_k(v-bar_k)>            cut to [0, 1]; where alpha is adaptive

All right sides are those before the step, on one batch. The w_k are averaged as if there were no v_k. A client is judged with
alpha_k v_k + (1 - alpha_k) w.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.demands import PLAIN_SGD, without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Samples, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["APFL"]


class APFL(Algorithm):
    """A mixture of a client's own vector and the server's."""

    title: ClassVar[str] = "Adaptive personalised federated learning"
    paper: ClassVar[str] = "Deng et al. 2020, Adaptive Personalized Federated Learning, arXiv:2003.13461"
    equation: ClassVar[str] = "algorithm 1"
    family: ClassVar[str] = "personalisation"
    cost: ClassVar[Cost] = Cost(state="1 vector and a number", compute="1 more gradient a step")
    roles: ClassVar[frozenset[str]] = frozenset({"what clients are judged with"})
    personal: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {"algorithm.adaptive": True, "evaluation.clients_every": 1}

    alpha: float = Field(
        0.25, ge=0, le=1, description="The share of a client's own vector, at first; the paper tries 0.25 to 0.75."
    )
    adaptive: bool = Field(False, description="Let each client learn its alpha.")

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "v takes plain steps of the round's learning rate, and w must take the same"
        yield from without(experiment.local, PLAIN_SGD, why)

    def client_state(self, w: Tensor, layout: Layout) -> State:
        return {"apfl.v": w, "apfl.alpha": w.new_full((1,), self.alpha)}

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        v, alpha = group.state["apfl.v"], group.state["apfl.alpha"]
        mixed = group.moving(group.at(alpha * v + (1 - alpha) * w))
        slope = ((v - w) * mixed).sum(1, keepdim=True)
        v -= group.lr * alpha * mixed
        if self.adaptive:
            alpha.sub_(group.lr * slope).clamp_(0, 1)
        return g

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        return {"delta": delta}, {name: group.state[name] for name in ("apfl.v", "apfl.alpha")}

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return 2 * plain

    def judged(self, group: Group) -> Tensor:
        alpha = group.state["apfl.alpha"]
        return alpha * group.state["apfl.v"] + (1 - alpha) * group.anchor
