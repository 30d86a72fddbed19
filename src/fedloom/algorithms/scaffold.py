"""SCAFFOLD (Karimireddy et al. 2020, algorithm 1): control variates c, c_k take the drift out of local steps.

    client k in S:  w_k <- w;  K_k times:  w_k <- w_k - lr_l (g_k(w_k) - c_k + c)
                    option I:   c_k+ = grad F_k(w)
                    option II:  c_k+ = c_k - c + (w - w_k) / (K_k lr_l)
    server:         w <- w + lr sum_S (w_k - w) / |S|
                    c <- c + |S|/N sum_S (c_k+ - c_k) / |S|

lr_l is `local.lr`; c and c_k are zero at first, so that c is the mean of all N clients' c_k ever after. Clients count alike,
whatever they weigh, as in the paper: what is minimised is the mean of the clients' losses. Option II takes the mean of a client's
last gradients from where it ended, which holds for plain SGD alone; option I asks for one more pass over all its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.demands import PLAIN_SGD, without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["Scaffold"]

_C = "scaffold.c"


class Scaffold(Algorithm):
    """Every local step is corrected by how the client's gradient differs from all clients'."""

    title: ClassVar[str] = "Stochastic controlled averaging"
    paper: ClassVar[str] = (
        "Karimireddy et al. 2020, SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, arXiv:1910.06378"
    )
    equation: ClassVar[str] = "algorithm 1"
    cost: ClassVar[Cost] = Cost(up="2x", down="2x", state="1 vector", compute="option I: 1 pass over all rows")
    roles: ClassVar[frozenset[str]] = frozenset({"gradient correction", "weighting"})
    unweighted: ClassVar[frozenset[str]] = frozenset({"delta", _C})
    signature: ClassVar[Mapping[str, Any]] = {"local.steps": 20, "local.optimizer": "sgd"}

    option: Literal["I", "II"] = Field(
        "II", description="How c_k is renewed: `I`, a gradient over all rows; `II`, from the local steps taken."
    )
    lr: float = Field(1.0, description="Learning rate of the server; the paper takes 1.", gt=0)

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        if self.option == "II":
            why = "option II of SCAFFOLD takes c_k from the distance gone, which holds for plain SGD alone"
            yield from without(experiment.local, tuple(k for k in PLAIN_SGD if k != "clip"), why, "use option: I")
        why = "SCAFFOLD corrects gradients by their difference from all clients', which clipping would change"
        yield from without(experiment.local, ("clip",), why)

    def client_state(self, w: Tensor, layout: Layout) -> State:
        return {_C: w.new_zeros(w.shape)}

    def server_state(self, w: Tensor, layout: Layout) -> State:
        return {_C: w.new_zeros(w.shape)}

    def broadcast(self, w: Tensor, server: State) -> State:
        return {_C: server[_C]}

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        return g - group.state[_C] + group.server[_C]

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {"delta": (layout.n,), _C: (layout.n,)}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        if self.option == "I":
            change = group.gradients(group.anchor) - group.state[_C]
        else:
            change = (group.anchor - w) / (group.steps * group.lr) - group.server[_C]
        if group.travels is not None:  # what the server does not see, or what stood still, says nothing
            change = change * group.travels
        return {"delta": delta, _C: change}, {_C: group.state[_C] + change}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        c = server[_C] + round.clients / round.total * aggregate[_C]
        return self.lr * aggregate["delta"], {**server, _C: c}
