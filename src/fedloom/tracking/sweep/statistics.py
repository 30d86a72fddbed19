"""Means over seeds with their 95% intervals, by Student's t distribution.

mean ± t(n - 1) s / sqrt(n), where s is the standard deviation over n seeds and t the 97.5% quantile (Student 1908): exact for
values that are normally distributed, wide for few of them, and not known for one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

__all__ = ["Estimate", "estimate", "t_quantile"]


class Estimate(NamedTuple):
    """A mean over n seeds and its 95% interval; low and high are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of some values, with its interval where there are two or more; None for none."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


@cache
def t_quantile(degrees: int) -> float:
    """The value that Student's t with so many degrees of freedom exceeds in size in 5% of cases."""
    low, high = 1.9, 13.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t), a finite sum for whole degrees (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(degrees // 2):  # even: 1 + 1/2 cos^2 + 1 3/(2 4) cos^4 + ...; odd: cos + 2/3 cos^3 + ...
        total += term
        term *= cosine**2 * ((2 * k + 1 + odd) / (2 * k + 2 + odd))
    area = math.sin(angle) * total
    return 2 / math.pi * (angle + area) if odd else area
