"""Uniform sampling of the cohort, without replacement, from those that are online.

Candidates are drawn from all clients, and those who are offline are passed over: each next one is a uniform draw from the others
online, and nobody else needs to be looked at.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.availability import Clients
from fedloom.selection.base import Pool, Selector, State
from fedloom.vector.streams import stream

__all__ = ["Uniform", "uniform"]

_FEW = 8  # to draw more than this part of all costs more than to look at all


class Uniform(Selector):
    """All who are online alike."""

    title: ClassVar[str] = "Uniform sampling"
    paper: ClassVar[str] = (
        "McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS"
    )
    equation: ClassVar[str] = "algorithm 1"

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        drawn = uniform(len(pool), count, seed=pool.seed, round=pool.round)
        found = drawn[pool.are_online(drawn)]
        draw = 0
        while len(found) < count and len(drawn) < len(pool):
            draw += 1
            missing, share = count - len(found), max(len(found), 1) / len(drawn)
            size = int(1.2 * missing / share) + 8
            if len(drawn) + size > len(pool) // _FEW:
                return self._among_all(pool, found, missing, draw)
            more = pool.random(draw).choice(len(pool), size=size, replace=False)
            more = more[~np.isin(more, drawn)]
            found = np.concatenate([found, more[pool.are_online(more)][:missing]])
            drawn = np.concatenate([drawn, more])
        return found

    def _among_all(self, pool: Pool, found: Clients, missing: int, draw: int) -> Clients:
        """The missing ones, from a list of all who are online."""
        left = pool.online.copy()
        left[found] = False
        others = np.flatnonzero(left)
        return np.concatenate([found, pool.random(draw).choice(others, size=min(missing, len(others)), replace=False)])


def uniform(population: int, cohort: int | None, *, seed: int, round: int, draw: int = 0) -> NDArray[np.int64]:
    """The numbers of the clients of a round, ascending; all of them when no cohort size is given.

    draw: counts further draws within a round, each from a stream of its own.
    """
    if cohort is None or cohort >= population:
        return np.arange(population)
    key = (round, draw) if draw else (round,)
    chosen = stream(seed, "selection", *key).choice(population, size=cohort, replace=False, shuffle=False)
    return np.sort(chosen)
