"""Learning-rate factors, within a round (over steps) and across rounds."""

from __future__ import annotations

import math

from fedloom.config.schema import Schedule

__all__ = ["factor"]


def factor(schedule: Schedule, index: int, total: int) -> float:
    """The factor at `index` of `total` (counted from 0): (index + 1) / (warmup + 1) in the warm-up, then the decay.

    With p = (index - warmup) / (total - warmup - 1) in [0, 1]: linear is 1 - (1 - final) p, cosine is
    final + (1 - final) (1 + cos(pi p)) / 2.
    """
    if index < schedule.warmup:
        return (index + 1) / (schedule.warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    p = min((index - schedule.warmup) / max(total - schedule.warmup - 1, 1), 1.0)
    shape = 1.0 - p if schedule.kind == "linear" else (1.0 + math.cos(math.pi * p)) / 2.0
    return schedule.final + (1.0 - schedule.final) * shape
