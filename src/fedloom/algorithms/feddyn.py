"""FedDyn (Acar et al. 2021, algorithm 1): each client's loss is bent until all have their minimum in one place.

    client k in S:  w_k ~ argmin F_k(w_k) - <h_k, w_k> + alpha/2 ||w_k - w||^2
                    h_k <- h_k - alpha (w_k - w)
    server:         h <- h - alpha/N sum_S (w_k - w)
                    w <- sum_S w_k / |S| - h / alpha

The direction of a local step is thus grad F_k(w_k) - h_k + alpha (w_k - w). All h are zero at first, so that h is the mean of all N
clients' h_k ever after. Clients count alike, whatever they weigh, as in the paper.

In the first round h = -alpha |S|/N Delta, with Delta the mean of w_k - w, so the server moves by (1 + |S|/N) Delta, whatever alpha.
Hence FedDyn does not become FedAvg as alpha goes to 0: clients then train as FedAvg's do, and the server takes FedAvg's step
plus every earlier mean step again, each times its |S|/N: with all clients, Nesterov momentum that never decays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.demands import without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["FedDyn"]

_H = "feddyn.h"


class FedDyn(Algorithm):
    """A linear term that grows with every round draws clients' minima to that of the mean loss."""

    title: ClassVar[str] = "Dynamic regularisation"
    paper: ClassVar[str] = "Acar et al. 2021, Federated Learning Based on Dynamic Regularization, arXiv:2111.04263"
    equation: ClassVar[str] = "algorithm 1"
    cost: ClassVar[Cost] = Cost(state="1 vector")
    roles: ClassVar[frozenset[str]] = frozenset({"gradient correction", "server step", "weighting"})
    unweighted: ClassVar[frozenset[str]] = frozenset({"delta"})
    signature: ClassVar[Mapping[str, Any]] = {"local.steps": 20, "algorithm.alpha": 0.1}

    alpha: float = Field(0.01, description="Strength of the regulariser; the paper tries 0.001, 0.01 and 0.1.", gt=0)

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "FedDyn's h_k is the gradient where a client ended, which clipping would change"
        yield from without(experiment.local, ("clip",), why)

    def client_state(self, w: Tensor, layout: Layout) -> State:
        return {_H: w.new_zeros(w.shape)}

    def server_state(self, w: Tensor, layout: Layout) -> State:
        return {_H: w.new_zeros(w.shape)}

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        return g - group.state[_H] + self.alpha * (w - group.anchor)

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        gone = w - group.anchor
        if group.travels is not None:  # only what the server sees has a minimum in common
            gone = gone * group.travels
        return {"delta": delta}, {_H: group.state[_H] - self.alpha * gone}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        mean = aggregate["delta"]
        h = server[_H] - self.alpha * (round.clients / round.total) * mean
        return mean - h / self.alpha, {**server, _H: h}
