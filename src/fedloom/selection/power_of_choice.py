"""Power-of-choice (Cho, Wang, Joshi 2020): of d candidates, those with the highest losses.

    A: d clients drawn with probability in proportion to n_k, without replacement, from those online
    S: the K of A with the highest loss

This is the paper's rpow-d: the loss of a client is the mean of its last training, so that nobody computes more than with
uniform sampling; a client that has not trained yet counts as the highest. (pow-d asks all d for their loss at the present model.)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Feedback, Pool, State, weighted

__all__ = ["PowerOfChoice"]


class PowerOfChoice(Selector):
    """Of some candidates, those with the highest losses."""

    title: ClassVar[str] = "Power-of-choice"
    paper: ClassVar[str] = (
        "Cho, Wang, Joshi 2020, Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice "
        "Selection Strategies, arXiv:2010.01243"
    )
    equation: ClassVar[str] = "rpow-d"

    candidates: int = Field(
        ge=1, description="d: clients to choose from; K makes it sampling by size, the paper takes 2 K to 10 K"
    )

    def begin(self, sizes: NDArray[np.int64]) -> State:
        """`loss`: of each one's last training; infinite before it."""
        return {"loss": np.full(len(sizes), np.inf)}

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        size = pool.sizes[pool.candidates].astype(float)
        drawn = np.sort(weighted(pool.candidates, size, max(self.candidates, count), pool.random()))
        ties = pool.random(1).permutation(len(drawn))
        return drawn[np.lexsort((ties, -state["loss"][drawn]))[:count]]

    def learn(self, state: State, told: Feedback, round: int) -> None:
        """The losses of those that arrived."""
        state["loss"][told.clients[told.arrived]] = told.loss[told.arrived]
