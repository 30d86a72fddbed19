"""q-FedSGD (Li et al. 2020, algorithm 1): clients whose loss is high count more; it minimises sum_k F_k^(q+1) / (q + 1).

    Delta_k = F_k^q grad F_k(w)
    h_k = q F_k^(q-1) ||grad F_k(w)||^2 + L F_k^q
    w <- w - sum_S Delta_k / sum_S h_k

F_k is client k's mean loss over all its rows at the w that was sent; L, an upper estimate of its gradient's Lipschitz constant, is
1 / `local.lr` unless it is given. Clients count alike, whatever they weigh; with q = 0 this is a gradient step of size 1/L.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedloom.algorithms.base import Cost
from fedloom.algorithms.fair import Fair
from fedloom.algorithms.one_step import one_step, only_one_step

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Samples
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group, Rule

__all__ = ["QFedSGD"]


class QFedSGD(Fair):
    """One gradient over all of a client's rows a round; those that fare worse count more."""

    title: ClassVar[str] = "q-fair federated SGD"
    equation: ClassVar[str] = "algorithm 1"
    cost: ClassVar[Cost] = Cost(
        up="1x and 1 number", compute="1 pass and 1 forward pass over all rows, instead of the local steps"
    )
    roles: ClassVar[frozenset[str]] = Fair.roles | {"local steps"}
    signature: ClassVar[Mapping[str, Any]] = {"local.steps": 1, "local.optimizer": "sgd", "algorithm.q": 1.0}

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        yield from only_one_step(experiment.local)

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return super().work(rows, rows, step)

    def train(self, group: Group, rule: Rule) -> Tensor:
        return one_step(group, rule)

    def scale(self, group: Group) -> float:
        return 1 / group.lr  # the step was lr times the gradient
