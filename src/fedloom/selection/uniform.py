"""Uniform sampling of the cohort, without replacement, from those that are online.

Candidates are drawn from all clients, and those who are offline are passed over: each next one is a uniform draw from the others
online, and nobody else needs to be looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedloom.selection.base import Selector

if TYPE_CHECKING:
    from fedloom.devices.availability import Clients
    from fedloom.selection.pool import Pool, State

__all__ = ["Uniform"]

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
        import numpy as np  # not before: a file that is only checked needs no arrays

        from fedloom.selection.pool import uniform

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
        import numpy as np

        left = pool.online.copy()
        left[found] = False
        others = np.flatnonzero(left)
        return np.concatenate([found, pool.random(draw).choice(others, size=min(missing, len(others)), replace=False)])
