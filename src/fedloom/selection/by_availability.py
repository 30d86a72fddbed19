"""Sampling against the bias of availability (after Ribero et al. 2022, F3AST).

    P(k is drawn next) = f_k^a / sum of f^a over those left,    f_k: the share of time that client k is online

drawn without replacement from those online. With a = -1 clients that are seldom online are drawn the more often when they are, so
that in the long run all take part alike; a = 0 is uniform sampling, under which those that are always online rule; a > 0 prefers
them. f_k is read from the device's trace. F3AST estimates it, and follows a utility besides, which is not here.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Pool, State, weighted

__all__ = ["ByAvailability"]


class ByAvailability(Selector):
    """Clients that are seldom online are chosen more often when they are."""

    title: ClassVar[str] = "Sampling by availability"
    paper: ClassVar[str] = (
        "Ribero, Vikalo, de Veciana 2022, Federated Learning Under Intermittent Client Availability and "
        "Time-Varying Communication Constraints, arXiv:2205.06730"
    )
    needs_devices: ClassVar[bool] = True

    power: float = Field(
        -1.0, description="a: below 0 evens participation out, 0 is uniform, above 0 prefers the often online"
    )

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        assert pool.population is not None
        share = pool.population.availability.online_share[pool.candidates]
        return weighted(pool.candidates, share**self.power, count, pool.random())
