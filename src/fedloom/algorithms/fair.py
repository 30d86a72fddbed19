"""The common form of the q-fair methods (Li et al. 2020, algorithms 1 and 2); what differs is the scale of s_k.

    s_k = scale (w - w_k)
    Delta_k = F_k^q s_k
    h_k = q F_k^(q-1) ||s_k||^2 + L F_k^q
    w <- w - sum_S Delta_k / sum_S h_k

s_k stands for client k's gradient; F_k is its mean loss over all its rows at the w that was sent. The paper draws client k with
probability p_k, its share of the rows, and lets those drawn count alike; here they are drawn uniformly, so that every p_k is 1/N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, Samples, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["Fair"]

_LEAST = 1e-10
"""The least F_k: with q < 1 the formula divides by it."""


class Fair(Algorithm):
    """A step of sum_k F_k^(q+1) / (q + 1) downhill, as long as its curvature allows."""

    paper: ClassVar[str] = "Li et al. 2020, Fair Resource Allocation in Federated Learning, arXiv:1905.10497"
    roles: ClassVar[frozenset[str]] = frozenset({"normalisation", "server step", "weighting"})
    unweighted: ClassVar[frozenset[str]] = frozenset({"delta", "fair.h"})

    q: float = Field(
        1.0,
        description="How much fairness counts: 0 is none, the larger, the more the worst client does; the paper takes "
        "0.001 to 5.",
        ge=0,
    )
    lipschitz: float | None = Field(
        None,
        description="L, how fast a client's gradient may change; 1 / local.lr when left out, as in the paper.",
        gt=0,
    )

    def constant(self, group: Group) -> float:
        """L."""
        return self.lipschitz or 1 / group.lr

    def scale(self, group: Group) -> float:
        """What makes a gradient of the way a client went."""
        return self.constant(group)

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {"delta": (layout.n,), "fair.h": (1,)}

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return plain + rows / 3  # their losses

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        scale, L, gone = self.scale(group), self.constant(group), w - group.anchor
        if group.travels is not None:
            gone = gone * group.travels
        F = group.losses(group.anchor).clamp_min(_LEAST)
        h = self.q * F ** (self.q - 1) * (scale * gone).square().sum(1, keepdim=True) + L * F**self.q
        return {"delta": F**self.q * scale * delta, "fair.h": h}, {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        return aggregate["delta"] / aggregate["fair.h"], server
