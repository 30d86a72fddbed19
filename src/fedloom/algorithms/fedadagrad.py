"""FedAdagrad (Reddi et al. 2021, algorithm 2).

    m <- beta1 m + (1 - beta1) Delta
    v <- v + Delta^2
    w <- w + lr m / (sqrt(v) + tau)

Delta is the mean update of a round (`adaptive.py`); before the first, m = 0 and v = tau^2. v never falls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedloom.algorithms.adaptive import Adaptive

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FedAdagrad"]


class FedAdagrad(Adaptive):
    """Steps shrink with the sum of all squared updates."""

    title: ClassVar[str] = "Adagrad at the server"

    beta1: float = Field(0.0, description="Momentum; the paper takes 0.", ge=0, lt=1)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square
