"""Uniform sampling of the cohort, without replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedloom.vector.streams import stream

__all__ = ["uniform"]


def uniform(population: int, cohort: int | None, *, seed: int, round: int, draw: int = 0) -> NDArray[np.int64]:
    """The numbers of the clients of a round, ascending; all of them when no cohort size is given.

    draw: counts further draws within a round, each from a stream of its own.
    """
    if cohort is None or cohort >= population:
        return np.arange(population)
    key = (round, draw) if draw else (round,)
    chosen = stream(seed, "selection", *key).choice(population, size=cohort, replace=False, shuffle=False)
    return np.sort(chosen)
