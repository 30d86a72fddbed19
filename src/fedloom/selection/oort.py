"""Oort (Lai et al. 2021, section 4, algorithm 1): clients that are useful and fast, and some that are unknown yet.

    U_i    = |B_i| sqrt(1/|B_i| sum over samples k in B_i of loss_k^2)              statistical utility, of its last training
    Util_i = (min(U_i, 95th percentile of U) + sqrt(0.1 ln R / L_i)) * (T / t_i)^alpha, the last factor where T < t_i

R is the round, L_i the round of i's last training, t_i how long it takes. Who is asked for the first time and does not arrive
counts as trained with the mean utility of those who did, as in the authors' code: it is known to be slow, or gone.

Of K clients, (1 - epsilon) K are exploited: drawn with probability in proportion to Util_i from all whose Util_i is at least c
times the ((1 - epsilon) K)-th highest. epsilon K are explored: drawn from those that have never trained, in proportion to their
speed 1 / t_i. epsilon begins at 0.9 and is multiplied by 0.98 a round down to 0.2. The pacer: when the utility of those chosen in
the last W rounds is less than that of the W before, T grows. Clients that were chosen `blacklist` times are not chosen again. With
fairness f, Util_i becomes (1 - f) Util_i / max Util + f (m - m_i) / max(m - m_i); i was chosen m_i times, and m is the most.

T is a percentile of the durations of the clients that have trained, and grows by points of it, as in the authors' code: the paper's
own unit is seconds, which no default would fit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Feedback, Pool, State, weighted

__all__ = ["Oort"]

Array = NDArray[Any]


class Oort(Selector):
    """Useful and fast clients, and some that are unknown yet."""

    title: ClassVar[str] = "Oort"
    paper: ClassVar[str] = (
        "Lai et al. 2021, Oort: Efficient Federated Learning via Guided Participant Selection, OSDI, arXiv:2010.06081"
    )
    equation: ClassVar[str] = "algorithm 1"
    needs_devices: ClassVar[bool] = True
    needs_losses: ClassVar[bool] = True

    exploration: float = Field(
        0.9, ge=0, le=1, description="epsilon of the first round: the share of clients that are explored"
    )
    exploration_decay: float = Field(0.98, gt=0, le=1, description="What epsilon is multiplied by a round")
    exploration_min: float = Field(0.2, ge=0, le=1, description="The least epsilon")
    cutoff: float = Field(
        0.95, ge=0, le=1, description="c: how far below the last of the best a client may be and still be drawn"
    )
    clip: float = Field(0.95, gt=0, le=1, description="The quantile of the utilities at which they are clipped")
    penalty: float = Field(2.0, ge=0, description="alpha: how much slow clients lose; 0 takes no notice of speed")
    preferred: float = Field(30.0, gt=0, le=100, description="T in the first round, as a percentile of the durations")
    pacer_step: float = Field(5.0, ge=0, description="Percentage points by which T grows when utility falls")
    pacer_window: int = Field(20, ge=1, description="W: rounds whose utility is compared")
    blacklist: int | None = Field(
        None, ge=1, description="Times after which a client is not chosen again (the paper tries 10); null: never"
    )
    fairness: float = Field(0.0, ge=0, le=1, description="f: 0 for utility alone, 1 for those who were chosen least")

    def begin(self, sizes: NDArray[np.int64]) -> State:
        """What is known of each: utility, last training, times chosen; the pacer's T and utilities, round by round."""
        n = len(sizes)
        return {
            "utility": np.zeros(n, dtype=np.float32),
            "last": np.zeros(n, dtype=np.int32),
            "chosen": np.zeros(n, dtype=np.int32),
            "preferred": np.array([self.preferred]),
            "gained": np.zeros(0),
        }

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        candidates = pool.candidates
        if self.blacklist is not None:
            candidates = candidates[state["chosen"][candidates] < self.blacklist]
        if len(candidates) <= count:
            return candidates
        seen = state["last"][candidates] > 0
        known, unknown = candidates[seen], candidates[~seen]
        epsilon = max(self.exploration * self.exploration_decay ** (pool.round - 1), self.exploration_min)
        explored = max(min(round(epsilon * count), len(unknown)), count - len(known))
        exploited = count - explored
        random = pool.random()
        new = weighted(unknown, 1.0 / pool.seconds[unknown], explored, random) if explored else unknown[:0]
        if not exploited:
            return new
        best = _above(self.utilities(known, pool, state), exploited, self.cutoff)
        return np.concatenate([new, weighted(known[best[0]], best[1], exploited, random)])

    def utilities(self, known: Clients, pool: Pool, state: State) -> Array:
        """`[m]`: Util of clients that have trained."""
        utility = state["utility"][known].astype(np.float64)
        every = state["last"] > 0
        clipped = np.minimum(utility, np.quantile(state["utility"][every], self.clip))
        util: Array = clipped + np.sqrt(0.1 * np.log(pool.round) / state["last"][known])
        seconds = pool.seconds
        preferred = np.percentile(seconds[every], state["preferred"][0])
        util *= np.minimum(1.0, preferred / seconds[known]) ** self.penalty
        if self.fairness:
            chosen = state["chosen"][known]
            behind = chosen.max() - chosen
            util = (1 - self.fairness) * util / max(util.max(), 1e-12) + self.fairness * behind / max(behind.max(), 1)
        return util

    def learn(self, state: State, told: Feedback, round: int) -> None:
        """The utilities of those that arrived, and the pacer's step at the end of a window."""
        own = told.clients[told.arrived]
        gained = told.samples[told.arrived] * np.sqrt(told.loss_square[told.arrived])
        state["chosen"][told.clients] += 1
        state["last"][own], state["utility"][own] = round, gained
        others = told.clients[~told.arrived]
        others = others[state["last"][others] == 0]
        if len(gained):
            state["last"][others], state["utility"][others] = round, gained.mean()
        w = self.pacer_window
        state["gained"] = recent = np.append(state["gained"], gained.sum())[-2 * w :]
        if round % w == 0 and len(recent) == 2 * w and recent[:w].sum() > recent[w:].sum():
            state["preferred"] = np.minimum(state["preferred"] + self.pacer_step, 100.0)


def _above(util: Array, count: int, cutoff: float) -> tuple[Array, Array]:
    """The places of utilities of at least `cutoff` times the count-th highest, and these, a hair above 0: all can be drawn."""
    best = np.flatnonzero(util >= cutoff * np.partition(util, len(util) - count)[len(util) - count])
    return best, np.maximum(util[best], 1e-12)
