"""q-FedAvg (Li et al. 2020, algorithm 2): clients whose loss is high count more; it minimises sum_k F_k^(q+1) / (q + 1).

    Delta_k = F_k^q L (w - w_k)
    h_k = q F_k^(q-1) ||L (w - w_k)||^2 + L F_k^q
    w <- w - sum_S Delta_k / sum_S h_k

F_k is client k's mean loss over all its rows at the w that was sent, before any training; w_k is where its local steps end; L, an
upper estimate of the gradient's Lipschitz constant, is 1 / `local.lr` unless it is given. Clients count alike, whatever they
weigh; with q = 0 this is their plain mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedloom.algorithms.base import Cost
from fedloom.algorithms.demands import without
from fedloom.algorithms.fair import Fair

if TYPE_CHECKING:
    from fedloom.config.schema import Experiment

__all__ = ["QFedAvg"]


class QFedAvg(Fair):
    """The mean of what clients learnt, more of it from those that fare worse."""

    title: ClassVar[str] = "q-fair federated averaging"
    equation: ClassVar[str] = "algorithm 2"
    cost: ClassVar[Cost] = Cost(up="1x and 1 number", compute="1 forward pass over all rows")
    signature: ClassVar[Mapping[str, Any]] = {"local.steps": 5, "local.optimizer": "sgd", "algorithm.q": 1.0}

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        if self.lipschitz is None:
            why = "q-FedAvg takes 1 / local.lr for the Lipschitz constant, which an SGD step makes sense of"
            yield from without(experiment.local, ("optimizer",), why, "give the algorithm's option lipschitz")
