"""The schedule of a run: which clients make a round, and when."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedloom.config.devices import AllWait
from fedloom.config.federation import ConstantArrivals, Federation, LognormalArrivals
from fedloom.devices.population import Population, Work
from fedloom.selection.arrivals import ArrivalModel, Arrivals, Constant, Lognormal, OnDevices
from fedloom.selection.base import Selector
from fedloom.selection.cohort import Schedule
from fedloom.selection.synchronous import Synchronous

__all__ = ["make_schedule"]


def make_schedule(
    federation: Federation,
    clients: Mapping[int, str],
    awaits: int | None,
    *,
    selector: Selector,
    sizes: NDArray[np.int64],
    seed: int,
    population: Population | None = None,
    work: Work | None = None,
) -> Schedule:
    """The schedule over clients, their ids by their numbers, ascending; `awaits` is an asynchronous algorithm's buffer, or None.

    sizes, population, and the work that clients of the first round are asked for, are in the order of the clients. Raises
    UsageError when fewer clients are under way than the server waits for.
    """
    if awaits is None:
        wait = federation.wait or AllWait(kind="all")
        return Synchronous(
            np.array(list(clients)), federation.clients_per_round, selector, seed, sizes, population, wait
        )
    settings = federation.arrivals or LognormalArrivals(kind="lognormal")
    model: ArrivalModel
    if population is not None:
        model = OnDevices(population, work)
    else:
        model = Constant(settings) if isinstance(settings, ConstantArrivals) else Lognormal(settings, seed=seed)
    return Arrivals(clients, federation.clients_per_round, awaits, model, seed=seed)
