"""FedProx (Li et al. 2020, equation 2): client k moves towards the minimum of

    h_k(w_k) = F_k(w_k) + mu/2 ||w_k - w||^2

so the direction of a local step is grad F_k(w_k) + mu (w_k - w), with w what the server sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.local.group import Group

__all__ = ["FedProx"]


class FedProx(Algorithm):
    """Local steps are held back towards the server's vector."""

    title: ClassVar[str] = "Proximal local training"
    paper: ClassVar[str] = "Li et al. 2020, Federated Optimization in Heterogeneous Networks, arXiv:1812.06127"
    equation: ClassVar[str] = "equation 2"
    signature: ClassVar[Mapping[str, Any]] = {"local.steps": 20}

    mu: float = Field(
        0.01, description="Strength of the pull to the server's vector; the paper tries 0.001 to 1.", ge=0
    )

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        return g + self.mu * (w - group.anchor)
