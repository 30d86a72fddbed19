"""Everybody in turn: those whose last turn is longest ago, of equals in an order drawn once a round.

Takes no notice of speed or loss: the fairest of all selections, and the one to hold against those that are not.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Feedback, Pool, State

__all__ = ["RoundRobin"]


class RoundRobin(Selector):
    """Those whose last turn is longest ago."""

    title: ClassVar[str] = "Round-robin"
    paper: ClassVar[str] = (
        "Yang et al. 2020, Scheduling Policies for Federated Learning in Wireless Networks, IEEE Trans. Communications"
    )
    equation: ClassVar[str] = "section III-B"

    def begin(self, sizes: NDArray[np.int64]) -> State:
        """`last`: the round in which each was last asked; 0 for never."""
        return {"last": np.zeros(len(sizes), dtype=np.int32)}

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        candidates = pool.candidates
        if len(candidates) <= count:
            return candidates
        turns = state["last"][candidates] + pool.random().random(len(candidates))  # below 1: only equals are drawn
        return candidates[np.argpartition(turns, count - 1)[:count]]

    def learn(self, state: State, told: Feedback, round: int) -> None:
        """Who was asked has had a turn, whatever came of it."""
        state["last"][told.clients] = round
