"""Whom a round's clients are chosen from, what a selector is told of them, and draws that several selectors share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.availability import Clients
from fedloom.devices.population import Population, Times, Work
from fedloom.vector.streams import stream

__all__ = ["Feedback", "Pool", "State", "uniform", "weighted"]

State = dict[str, NDArray[Any]]
"""What a selector knows: arrays, most of them over all clients."""


@dataclass(frozen=True)
class Pool:
    """Whom a round's clients can be chosen from, and what is known of them before they are asked."""

    round: int
    seed: int
    sizes: NDArray[np.int64]
    """`[N]`: the rows that each client trains on."""
    now: float = 0.0
    """The virtual time."""
    population: Population | None = None
    """The devices; None where nothing is known of them, and all are there."""
    work: Work | None = None
    """What each is asked for, where devices are known."""

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def online(self) -> NDArray[np.bool_]:
        """`[N]`: who can be asked now."""
        if self.population is None:
            return np.ones(len(self), dtype=bool)
        return self.population.availability.online(self.now)

    @cached_property
    def times(self) -> Times:
        """How long each client would take, were it not interrupted; all are `[N]`."""
        assert self.population is not None and self.work is not None
        return self.population.times(self.work)

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """`[N]`: the whole of it."""
        return self.times.total

    @cached_property
    def candidates(self) -> Clients:
        """Those who can be asked now, ascending."""
        return np.flatnonzero(self.online)

    def are_online(self, clients: Clients) -> NDArray[np.bool_]:
        """`[m]`: which of these can be asked now; much cheaper than `online` for a few."""
        if self.population is None:
            return np.ones(len(clients), dtype=bool)
        found: NDArray[np.bool_] = self.population.availability.until(clients, self.now) > self.now
        return found

    def random(self, draw: int = 0) -> np.random.Generator:
        """The round's random numbers; another stream for each further draw."""
        return stream(self.seed, "selection", *((self.round, draw) if draw else (self.round,)))


class Feedback(NamedTuple):
    """What came of the clients that were asked in a round; all are `[m]`."""

    clients: Clients
    arrived: NDArray[np.bool_]
    """Whose update is in the round."""
    samples: NDArray[np.int64]
    """Rows each trained on, one that it took twice counted once; 0 for those that did not arrive."""
    loss: NDArray[np.float64]
    """Mean loss of its training; NaN likewise."""
    loss_square: NDArray[np.float64]
    """Mean square of its samples' losses; NaN likewise, and where nobody asked for it."""


def weighted(candidates: Clients, weights: NDArray[np.float64], count: int, random: np.random.Generator) -> Clients:
    """So many of the candidates, drawn one after the other with probability in proportion to their weights, above 0.

    A race of exponential clocks, E_k / weight_k: the first to ring are such a sample (Efraimidis and Spirakis 2006).
    """
    if len(candidates) <= count:
        return candidates
    rings = random.standard_exponential(len(candidates)) / weights
    return candidates[np.argpartition(rings, count - 1)[:count]]


def uniform(population: int, cohort: int | None, *, seed: int, round: int, draw: int = 0) -> NDArray[np.int64]:
    """The numbers of the clients of a round, ascending; all of them when no cohort size is given.

    draw: counts further draws within a round, each from a stream of its own.
    """
    if cohort is None or cohort >= population:
        return np.arange(population)
    key = (round, draw) if draw else (round,)
    chosen = stream(seed, "selection", *key).choice(population, size=cohort, replace=False, shuffle=False)
    return np.sort(chosen)
