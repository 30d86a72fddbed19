"""FedSGD (McMahan et al. 2017, algorithm 1 with E = 1 and B = infinity).

    w <- w - lr sum_k p_k grad F_k(w) / sum_k p_k

F_k is client k's mean loss over all its rows, lr is `local.lr`, p_k is its weight (`federation.weighting`). With p_k the number
of rows it is gradient descent on the pooled rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.one_step import one_step, only_one_step

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Samples
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group, Rule

__all__ = ["FedSGD"]


class FedSGD(Algorithm):
    """One gradient over all of a client's rows a round, and their mean."""

    title: ClassVar[str] = "Federated SGD"
    paper: ClassVar[str] = (
        "McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, arXiv:1602.05629"
    )
    equation: ClassVar[str] = "algorithm 1, E = 1, B = infinity"
    cost: ClassVar[Cost] = Cost(compute="1 pass over all rows, instead of the local steps")
    roles: ClassVar[frozenset[str]] = frozenset({"local steps"})
    signature: ClassVar[Mapping[str, Any]] = {"local.optimizer": "sgd", "local.steps": 1}

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        yield from only_one_step(experiment.local)

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return rows

    def train(self, group: Group, rule: Rule) -> Tensor:
        return one_step(group, rule)
