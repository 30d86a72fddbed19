"""Optimizers over a bank: every row has its own state, step counter and learning rate.

Each is checked in the tests against `torch.optim` run row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.config.schema import Local

__all__ = ["Adam", "Optimizer", "Sgd", "State", "optimizer"]

State = dict[str, Tensor]
"""What an optimizer keeps, a row a client: `step` is `[K]`, averages are `[K, n]`."""


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum (Sutskever et al. 2013, as in torch.optim): b = m b + g; w -= lr (g + m b if Nesterov else b)."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def init(self, w: Tensor) -> State:
        """Fresh state for rows `[K, n]`."""
        step = torch.zeros(len(w), device=w.device)
        return {"step": step, "momentum": torch.zeros_like(w)} if self.momentum else {"step": step}

    def step(self, w: Tensor, g: Tensor, state: State, lr: Tensor) -> None:
        """Move `w` in place along `g`; `w`, `g` are `[K, n]`, `lr` is `[K, 1]`. `g` may be overwritten."""
        state["step"] += 1
        if self.weight_decay:
            g = g.add_(w, alpha=self.weight_decay)
        if self.momentum:
            b = state["momentum"].mul_(self.momentum).add_(g)
            g = g.add_(b, alpha=self.momentum) if self.nesterov else b
        w.addcmul_(g, lr, value=-1.0)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) and AdamW (Loshchilov & Hutter 2019, algorithm 2).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t a row's own.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True

    def init(self, w: Tensor) -> State:
        """Fresh state for rows `[K, n]`."""
        return {"step": torch.zeros(len(w), device=w.device), "m": torch.zeros_like(w), "v": torch.zeros_like(w)}

    def step(self, w: Tensor, g: Tensor, state: State, lr: Tensor) -> None:
        """Move `w` in place along `g`; `w`, `g` are `[K, n]`, `lr` is `[K, 1]`. `g` may be overwritten."""
        b1, b2 = self.betas
        t, m, v = state["step"].add_(1), state["m"], state["v"]
        if self.weight_decay and self.decoupled:
            w.mul_(1.0 - lr * self.weight_decay)
        elif self.weight_decay:
            g = g.add_(w, alpha=self.weight_decay)
        m.lerp_(g, 1.0 - b1)
        v.mul_(b2).addcmul_(g, g, value=1.0 - b2)
        # Bias corrections in float64, as torch.optim computes them: 1 - 0.999**t loses digits in float32.
        t64 = t.double().unsqueeze(1)
        step_size = (lr.double() / (1.0 - b1**t64)).to(w.dtype)
        scale = (1.0 / (1.0 - b2**t64).sqrt()).to(w.dtype)
        denominator = torch.mul(v.sqrt(), scale, out=g).add_(self.eps)
        w.addcmul_(m / denominator, step_size, value=-1.0)


Optimizer = Sgd | Adam

_KINDS: dict[str, Callable[[Local], Optimizer]] = {
    "sgd": lambda c: Sgd(c.momentum, c.nesterov, c.weight_decay),
    "adam": lambda c: Adam((c.betas[0], c.betas[1]), c.eps, c.weight_decay, decoupled=False),
    "adamw": lambda c: Adam((c.betas[0], c.betas[1]), c.eps, c.weight_decay, decoupled=True),
}


def optimizer(local: Local) -> Optimizer:
    """The optimizer a `local` section asks for."""
    return _KINDS[local.optimizer](local)
