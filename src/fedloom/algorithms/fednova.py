"""FedNova (Wang et al. 2020, section 5): clients' steps are normalised before their mean; tau_eff = sum_k p_k ||a_k||_1.

    w <- w + (sum_k p_k ||a_k||_1) (sum_k p_k (w_k - w) / ||a_k||_1)        p_k sum to 1

a_k says how often each of client k's tau_k gradients counts in w_k - w. With SGD of momentum rho

    ||a_k||_1 = sum_{i=1}^{tau_k} (1 - rho^i) / (1 - rho) = (tau_k - rho (1 - rho^tau_k) / (1 - rho)) / (1 - rho)

which is tau_k without momentum. So a client that takes more steps than another pulls no harder at where the mean ends up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.demands import without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["FedNova"]

_A = "fednova.a"


class FedNova(Algorithm):
    """The mean of what each client gained a step, times the mean number of steps."""

    title: ClassVar[str] = "Normalised averaging"
    paper: ClassVar[str] = (
        "Wang et al. 2020, Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, "
        "arXiv:2007.07481"
    )
    equation: ClassVar[str] = "section 5"
    cost: ClassVar[Cost] = Cost(up="1x and 1 number")
    roles: ClassVar[frozenset[str]] = frozenset({"normalisation", "weighting"})
    signature: ClassVar[Mapping[str, Any]] = {"local.steps": None, "local.epochs": 2, "local.optimizer": "sgd"}

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        local = experiment.local
        why = "FedNova's normalisation is worked out for SGD, with or without momentum, at one learning rate"
        yield from without(local, ("optimizer", "nesterov", "schedule"), why)
        if local.momentum:
            why = "FedNova counts how often a round's gradients enter its momentum, which must begin anew each round"
            yield from without(local, ("optimizer_state",), why)

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {"delta": (layout.n,), _A: (1,)}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        rho, tau = group.trainer.local.momentum, group.steps
        a = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        return {"delta": delta / a, _A: a}, {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        return aggregate[_A] * aggregate["delta"], server
