"""FedAdam (Reddi et al. 2021, algorithm 2).

    m <- beta1 m + (1 - beta1) Delta
    v <- beta2 v + (1 - beta2) Delta^2
    w <- w + lr m / (sqrt(v) + tau)

Delta is the mean update of a round (`adaptive.py`); before the first, m = 0 and v = tau^2. v follows the size of recent updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedloom.algorithms.adaptive import Adaptive

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FedAdam"]


class FedAdam(Adaptive):
    """Steps shrink with a running mean of squared updates."""

    title: ClassVar[str] = "Adam at the server"

    beta2: float = Field(0.99, description="Decay of v; the paper takes 0.99.", ge=0, lt=1)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square
