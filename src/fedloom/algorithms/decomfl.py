"""DeComFL (Li et al. 2025, algorithms 1 and 2; 3 and 4 with P > 1): seeds and scalars, both ways.

    client i, step t = 1 .. T   g_it = mean_p (f_i(w_it + h v_tp) - f_i(w_it)) / h;   w_i,t+1 = w_it - lr / P sum_p g_itp v_tp
    server                      g_tp = mean_i g_itp
    server and every client     w <- w - lr / P sum_t sum_p g_tp v_tp

All clients of a round take the same directions v_tp, so a client sends T P numbers. Nothing of w is ever sent: the server sends
the numbers of the last round, from which a client makes the step that the server made. Every client of the federation needs
each round's, whether it was asked or not (it gets those it missed when it is asked again), and so are bytes down counted. T is
`local.steps`, P `local.gradient.directions`, lr `local.lr`. The paper takes forward differences; `central` is as good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.directional import (
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

__all__ = ["DeComFL"]

_C = "decomfl.scalars"
_LAST = "decomfl.last"


class DeComFL(Algorithm):
    """The same directions everywhere; only derivatives along them travel, up and down."""

    title: ClassVar[str] = "Dimension-free communication"
    paper: ClassVar[str] = (
        "Li et al. 2025, Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order Optimization, "
        "arXiv:2405.15861"
    )
    equation: ClassVar[str] = "algorithms 1 to 4"
    family: ClassVar[str] = "backprop-free"
    cost: ClassVar[Cost] = Cost(up="T P numbers", down="T P numbers", compute="2 P forward passes a local step")
    roles: ClassVar[frozenset[str]] = frozenset({"everything"})
    unweighted: ClassVar[frozenset[str]] = frozenset({"delta", _C})
    listens: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {
        "local.steps": 2,
        "local.gradient": {"kind": "forward", "shared": True, "directions": 10},
        "local.lr": 0.02,
    }

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "DeComFL's clients take differences along directions that all have in common, and send just those"
        yield from estimated(experiment, why, ("forward", "central"), shared=True, **SENT_ITSELF)
        yield from plain_steps(experiment, "DeComFL's numbers make plain steps of the same length")
        yield from one_for_all(experiment, "DeComFL's directions are those of all that is learnt")
        if experiment.local.steps is None:
            yield "local.epochs", "DeComFL's clients take as many steps, each along its own directions", "Set steps: 1"

    def server_state(self, w: Tensor, layout: Layout) -> State:
        return {_LAST: w.new_zeros(0)}

    def broadcast(self, w: Tensor, server: State) -> State:
        return {_LAST: server[_LAST]}

    def receives(self, layout: Layout, round: int) -> Tensor | None:
        return layout.mask(lambda _: False)

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {_C: coefficients_shape(experiment)}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        return {_C: coefficients(group)}, {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        c = aggregate[_C]
        return common_step(w, c, round), {**server, _LAST: c}
