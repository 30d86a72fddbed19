"""K trainable vectors and their gradients, a row a client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Bank", "clip_rows"]


@dataclass(frozen=True)
class Bank:
    """`values` and `grads`, both `[K, n]` float32."""

    values: Tensor
    grads: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Bank:
        """A bank that starts at a copy of these rows, with zero gradients."""
        values = rows.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
        return cls(values, torch.zeros_like(values))

    def __len__(self) -> int:
        return self.values.shape[0]


def clip_rows(g: Tensor, limit: float) -> Tensor:
    """Scale each row of `[K, n]` to norm at most `limit`, in place: g_k *= min(1, limit / ||g_k||)."""
    norms = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    return g.mul_((limit / norms.clamp_min(torch.finfo(g.dtype).tiny)).clamp_max(1.0))
