"""BAFFLE (Feng et al. 2023, algorithm 1).

    client c   s_ck = (f_c(w + h v_k) - f_c(w - h v_k)) / 2h,   k = 1 .. K
    server     w <- w - lr sum_k s_k v_k / K,   s_k = sum_c p_c s_ck / sum_c p_c

The directions v_k are common to all clients of a round, so what a client sends are K numbers, and their mean over clients is the
derivative of the clients' mean loss. K is `local.gradient.directions`, h `local.gradient.h` (the paper's sigma, 1e-4), lr
`local.lr`; f_c is the loss of the client's one batch: with `batch_size` as large as its rows, of all of them, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.directional import (
    ALONE,
    SENT_ITSELF,
    coefficients,
    coefficients_shape,
    common_step,
    estimated,
    one_for_all,
    plain_steps,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["Baffle"]

_C = "baffle.scalars"


class Baffle(Algorithm):
    """Every client measures the loss along the same directions, and sends only what it measured."""

    title: ClassVar[str] = "Backpropagation-free federated learning"
    paper: ClassVar[str] = "Feng et al. 2023, Does Federated Learning Really Need Backpropagation?, arXiv:2301.12195"
    equation: ClassVar[str] = "algorithm 1"
    family: ClassVar[str] = "backprop-free"
    cost: ClassVar[Cost] = Cost(up="K numbers", compute="2 K forward passes of a batch, instead of the local steps")
    roles: ClassVar[frozenset[str]] = ALONE
    signature: ClassVar[Mapping[str, Any]] = {
        "local.steps": 1,
        "local.gradient": {"kind": "central", "shared": True, "directions": 20, "h": 1e-3},
        "local.batch_size": 32,
    }

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "BAFFLE's clients measure differences along directions that all have in common, and send just those"
        yield from estimated(experiment, why, ("central", "forward"), shared=True, **SENT_ITSELF)
        why = "BAFFLE's clients take one plain step a round, which the server makes, so this plays no part"
        yield from plain_steps(experiment, why, "steps", "epochs")
        yield from one_for_all(
            experiment, "BAFFLE takes the mean over clients of derivatives along the same directions"
        )

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {_C: coefficients_shape(experiment)}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        return {_C: coefficients(group)}, {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        return common_step(w, aggregate[_C], round), server
