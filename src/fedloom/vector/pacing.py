"""How many directions a step needs, told from the derivatives along those drawn so far.

A step's forward gradient is g_hat = (1/N) sum_k s_k v_k with s_k = g . v_k. A pacer sees the scalars s and says how many
more directions to draw, 0 to accept. Every draw stays in the mean: what was drawn and not liked is not thrown away.

Scalars are `[N]`, or `[C, N]` where C clients took the same N directions; the step's own are then their means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedloom.errors import FedloomError
from fedloom.vector.directions import Kind

__all__ = [
    "Fixed",
    "Pacer",
    "Schedule",
    "SignalToNoise",
    "VarianceControlled",
    "half_split_variance",
    "relative_noise",
    "scalar_variance",
    "shrinkage",
    "signal_to_noise",
    "squared_norm",
]


def half_split_variance(estimates: Tensor) -> float:
    """FwdLLM's statistic: mean over entries of (m1 - m2)^2 / 2, the means of the two halves of s_k v_k, `[N, ...]`.

    Of an odd N the first half has the smaller part. Its expectation is 2/N times the variance of one estimate's entry.
    """
    count = len(estimates)
    if count < 2:
        raise FedloomError(f"{count} estimates cannot be split in halves", fix="draw at least 2 directions")
    first, second = estimates[: count // 2].double().mean(0), estimates[count // 2 :].double().mean(0)
    return float(((first - second).square() / 2).mean())


def scalar_variance(scalars: Tensor) -> float:
    """What `half_split_variance` tends to in many dimensions, from the scalars alone: (2 / N^2) sum_k s_k^2."""
    step = _step(scalars)
    return float(2 * step.square().sum() / len(step) ** 2)


def squared_norm(scalars: Tensor) -> float:
    """||g||^2 without bias: mean_k s_k^2. For C clients, ||mean of their g_c||^2."""
    return float(_step(scalars).square().mean())


def relative_noise(count: int, d: int, kind: Kind = "gaussian") -> float:
    """E||g_hat - g||^2 / ||g||^2 for N directions in d dimensions.

    (d + 1)/N for gaussian, (d - 1)/N for rademacher and sphere, whose norms are all sqrt(d), d/N - 1 for orthogonal.
    """
    if kind == "orthogonal":
        return d / count - 1
    return (d + 1 if kind == "gaussian" else d - 1) / count


def shrinkage(count: int, d: int, kind: Kind = "gaussian") -> float:
    """||g||^2 / E||g_hat||^2 = N / (N + d + 1) for gaussian: what brings a learning rate for g to one for g_hat."""
    return 1 / (1 + relative_noise(count, d, kind))


def signal_to_noise(scalars: Tensor, d: int, kind: Kind = "gaussian") -> float:
    """||g||^2 over the expected squared error of g_hat, from scalars `[N]` or `[C, N]`.

    One row: 1 / `relative_noise`, whatever the scalars. C > 1 rows on the same directions: the variance t of the clients'
    scalars, averaged over directions, estimates the trace of the covariance of their gradients, so with m = `squared_norm`
    signal = m - t/C (not below 0), noise = `relative_noise` m + t/C.
    """
    power, spread = squared_norm(scalars), _spread(scalars)
    if spread == 0:
        noise = relative_noise(scalars.shape[-1], d, kind)
        return math.inf if noise == 0 else 1 / noise
    return max(0.0, power - spread) / (relative_noise(scalars.shape[-1], d, kind) * power + spread)


def _step(scalars: Tensor) -> Tensor:
    """The step's own scalars `[N]`, in float64."""
    if scalars.dim() not in (1, 2) or not scalars.numel():
        raise FedloomError(f"scalars {tuple(scalars.shape)} are not [N] or [C, N]", fix="draw at least one direction")
    return scalars.double() if scalars.dim() == 1 else scalars.double().mean(0)


def _spread(scalars: Tensor) -> float:
    """t/C, the variance of the clients' mean that comes from the clients; 0 where they cannot be told apart."""
    if scalars.dim() == 1 or len(scalars) == 1:
        return 0.0
    return float(scalars.double().var(0).mean()) / len(scalars)


class Pacer(Protocol):
    """Says when a step has directions enough."""

    def more(self, scalars: Tensor, *, round: int, d: int) -> int:
        """How many more directions to draw after these, `[N]` or `[C, N]`, N = 0 at first; 0 accepts the step.

        d is the number of entries perturbed. The answer depends on nothing else, so any worker comes to the same number.
        """
        ...


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise FedloomError(f"{value} directions estimate nothing", where=name, fix="draw at least 1")


@dataclass(frozen=True)
class Fixed:
    """N directions, always."""

    count: int

    def __post_init__(self) -> None:
        _positive("count", self.count)

    def more(self, scalars: Tensor, *, round: int, d: int) -> int:
        return max(0, self.count - scalars.shape[-1])


@dataclass(frozen=True)
class Schedule:
    """N by round, the last one for all later rounds; the FwdLLM authors try 1, 3, 6, 10, 10."""

    counts: Sequence[int]

    def __post_init__(self) -> None:
        if not self.counts:
            raise FedloomError("the schedule of directions is empty", fix="give at least one number")
        for count in self.counts:
            _positive("counts", count)

    def more(self, scalars: Tensor, *, round: int, d: int) -> int:
        return max(0, self.counts[min(round, len(self.counts) - 1)] - scalars.shape[-1])


@dataclass(frozen=True)
class VarianceControlled:
    """FwdLLM's pacing: draw `attempt` more until `scalar_variance` is at most `threshold` or `cap` are drawn.

    That is N near 2 ||g||^2 / threshold: the threshold is in the units of the loss, and says nothing of the relative error.
    Stopping at the first dip under-estimates ||g|| a little; attempts that are a good part of N keep that small.
    """

    threshold: float
    cap: int
    attempt: int = 10

    def __post_init__(self) -> None:
        _positive("cap", self.cap)
        _positive("attempt", self.attempt)

    def more(self, scalars: Tensor, *, round: int, d: int) -> int:
        drawn = scalars.shape[-1]
        # One direction has no halves to compare. A scalar that is no number is never below: the cap ends it.
        if drawn > 1 and scalar_variance(scalars) <= self.threshold:
            return 0
        return max(0, min(self.attempt, self.cap - drawn))


@dataclass(frozen=True)
class SignalToNoise:
    """Draw until `signal_to_noise` is at least rho or `cap` are drawn; the cosine with g is then sqrt(rho / (1 + rho)).

    `attempt` directions show how far the clients differ; the number that is then still needed is drawn at once.
    """

    rho: float
    cap: int
    attempt: int = 10
    kind: Kind = "gaussian"

    def __post_init__(self) -> None:
        _positive("cap", self.cap)
        _positive("attempt", self.attempt)
        if not self.rho > 0:
            raise FedloomError(
                f"a signal-to-noise ratio of {self.rho} asks for nothing", where="rho", fix="set it above 0"
            )

    def more(self, scalars: Tensor, *, round: int, d: int) -> int:
        drawn = scalars.shape[-1]
        if not drawn:
            return min(self.attempt, self.cap)
        if drawn >= self.cap or signal_to_noise(scalars, d, self.kind) >= self.rho:
            return 0
        return min(self._needed(scalars, d), self.cap) - drawn

    def _needed(self, scalars: Tensor, d: int) -> int:
        """The N > drawn with signal >= rho noise if power and spread stay as they are; the cap if there is none."""
        power, spread = squared_norm(scalars), _spread(scalars)
        # noise allowed of the directions, relative to the power: (signal / rho - spread) / power
        allowed = (max(0.0, power - spread) / self.rho - spread) / power if power > 0 else math.nan
        if not allowed > 0:
            return self.cap
        first = scalars.shape[-1] + 1
        exact = d / (1 + allowed) if self.kind == "orthogonal" else relative_noise(1, d, self.kind) / allowed
        return max(first, math.ceil(exact - 1e-9))
