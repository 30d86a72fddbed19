"""FedCS (Nishio and Yonetani 2019, algorithm 3): as many clients as fit into a deadline, whose uploads share one channel.

    candidates: a random part of those online;  S empty, Theta = 0
    while there are candidates:
        x = argmin_k of t_up_k + max(0, t_ud_k - Theta),    t_ud_k: download and computation
        Theta' = Theta + t_up_x + max(0, t_ud_x - Theta);  x joins S, and Theta = Theta', where Theta' <= deadline

Clients compute side by side and upload one after the other; Theta is when the last of S has uploaded. `clients_per_round` bounds
how many join. The paper's time to select and to aggregate is none here. The clock's own uploads do not share a channel, so a round
is over by the deadline at the latest.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Pool, State

__all__ = ["FedCS"]


class FedCS(Selector):
    """As many fast clients as fit into a deadline."""

    title: ClassVar[str] = "Client selection by deadline"
    paper: ClassVar[str] = (
        "Nishio, Yonetani 2019, Client Selection for Federated Learning with Heterogeneous Resources in Mobile Edge, "
        "IEEE ICC, arXiv:1804.08333"
    )
    equation: ClassVar[str] = "algorithm 3"
    needs_devices: ClassVar[bool] = True

    deadline: float = Field(gt=0, description="T_round: seconds in which all that are chosen have uploaded")
    share: float = Field(
        0.1, gt=0, le=1, description="C: the part of the clients online that are asked for their resources"
    )

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        online = pool.candidates
        asked = min(len(online), max(count, round(self.share * len(online))))
        left = pool.random().choice(online, size=asked, replace=False)
        times = pool.times
        up, ready = times.up[left], times.down[left] + times.compute[left]
        chosen: list[int] = []
        theta = 0.0
        while len(left) and len(chosen) < count:
            more = up + np.maximum(0.0, ready - theta)
            x = int(more.argmin())
            if theta + more[x] <= self.deadline:
                theta += float(more[x])
                chosen.append(int(left[x]))
            left, up, ready = (np.delete(values, x) for values in (left, up, ready))
        return np.array(chosen, dtype=np.int64)
