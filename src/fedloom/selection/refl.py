"""REFL's selection (Abdelmoniem et al. 2023, section 4.1, intelligent participant selection): the least available first.

    S = the K of those online who will be online for the smallest share of [now + mu, now + 2 mu]

mu is how long rounds take: mu <- (1 - a) D + a mu after a round that took D seconds. Whoever took part is not asked for `hold`
rounds again. The share is read from the devices' traces, where REFL has clients predict it. The other half of REFL, which lets
updates that come late join later rounds, is not here: an asynchronous algorithm does that.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Feedback, Pool, State

__all__ = ["REFL"]


class REFL(Selector):
    """Those who will soon be gone come first."""

    title: ClassVar[str] = "Resource-efficient selection"
    paper: ClassVar[str] = (
        "Abdelmoniem et al. 2023, REFL: Resource-Efficient Federated Learning, EuroSys, arXiv:2111.01108"
    )
    equation: ClassVar[str] = "section 4.1"
    needs_devices: ClassVar[bool] = True

    smoothing: float = Field(
        0.25, ge=0, lt=1, description="a: how much of the mean duration of rounds is the earlier ones'"
    )
    begin_seconds: float = Field(1000.0, gt=0, description="mu before the first round")
    hold: int = Field(
        5, ge=0, description="Rounds for which a client that took part is not asked again, while others are online"
    )

    def begin(self, sizes: NDArray[np.int64]) -> State:
        """`last`: the round of each one's last part, far back before it; mu; the time at which the last round began."""
        last = np.full(len(sizes), -(1 << 30), dtype=np.int32)
        return {"last": last, "mu": np.array([self.begin_seconds]), "began": np.array([np.nan])}

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        assert pool.population is not None
        if np.isfinite(state["began"][0]):
            state["mu"] = (1 - self.smoothing) * (pool.now - state["began"]) + self.smoothing * state["mu"]
        state["began"] = np.array([pool.now])
        candidates = pool.candidates
        if len(candidates) <= count:
            return candidates
        mu = float(state["mu"][0])
        share = pool.population.availability.share_online(candidates, pool.now + mu, pool.now + 2 * mu)
        held = pool.round - state["last"][candidates] <= self.hold
        order = np.lexsort((pool.random().permutation(len(candidates)), share, held))
        return candidates[order[:count]]

    def learn(self, state: State, told: Feedback, round: int) -> None:
        """Who was asked is held back for a while."""
        state["last"][told.clients] = round
