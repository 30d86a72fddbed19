"""Per-FedAvg (Fallah et al. 2020, algorithm 1 and section 5): a vector from which one step leads to each client's own.

    w~ <- w - alpha grad f_k(w; D)
    w  <- w - beta (I - alpha Hess f_k(w; D'')) grad f_k(w~; D')

D, D' and D'' are the batches of this step and of the next two; beta is the local learning rate. "fo" leaves the Hessian out;
"hf" takes its product with d = grad f_k(w~; D') from a difference of gradients:
Hess d ~ (grad f_k(w + delta d) - grad f_k(w - delta d)) / (2 delta).

A client is judged with w - alpha grad f_k(w; D), one step of stochastic gradient descent as in the paper's experiments
(section 5); D is the first batch of its plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.demands import without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Samples
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group

__all__ = ["FedMAML"]


class FedMAML(Algorithm):
    """Clients are judged one step of `alpha`, on a batch of their own, away from the server's vector."""

    title: ClassVar[str] = "Per-FedAvg"
    paper: ClassVar[str] = (
        "Fallah et al. 2020, Personalized Federated Learning: A Meta-Learning Approach, arXiv:2002.07948"
    )
    equation: ClassVar[str] = "algorithm 1, and section 5 for the two approximations"
    family: ClassVar[str] = "personalisation"
    cost: ClassVar[Cost] = Cost(compute="2 gradients a step (fo), 4 (hf); 1 when judged")
    roles: ClassVar[frozenset[str]] = frozenset({"gradient correction", "what clients are judged with"})
    personal: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {"algorithm.alpha": 0.1, "evaluation.clients_every": 1}

    variant: Literal["fo", "hf"] = Field(
        "hf", description="`fo` leaves the Hessian out; `hf` takes its product from a difference of two gradients."
    )
    alpha: float = Field(0.01, ge=0, description="Rate of the step that makes w a client's own; the paper takes 0.01.")
    delta: float = Field(1e-2, gt=0, description="Half the distance of the two gradients of `hf`, in units of d.")

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "the meta-gradient is worked out for plain steps along the bare gradient"
        yield from without(experiment.local, ("optimizer", "momentum", "weight_decay", "clip"), why)

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        d = group.moving(group.at(w - self.alpha * g, ahead=1))
        if self.variant == "fo":
            return d
        above, below = (group.at(w + sign * self.delta * d, ahead=2) for sign in (1, -1))
        return d - self.alpha * group.moving(above - below) / (2 * self.delta)

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return (2 if self.variant == "fo" else 4) * plain

    def judged(self, group: Group) -> Tensor:
        return group.anchor - self.alpha * group.moving(group.trainer.first_gradients(group))
