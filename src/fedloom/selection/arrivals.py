"""The order in which clients' updates arrive at a server that does not wait for all of them.

A fixed number of clients is always under way. Each takes the time that an arrival model gives it. When `buffer` updates have
arrived, the server makes its next version; at every instant at which updates arrive, the clients that are missing are drawn
uniformly from those that are free, and start from the version of that instant. An update that arrives together with the one that
fills the buffer goes into the next. A client is free when it is neither under way nor waiting in the buffer: it would train from
the same version again. So a client starts from a version at most once, and is never under way twice.

All this follows from the seed and the arrival model alone, so it is the same whatever is trained, and is simply run again from the
start when a federation is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np

from fedloom.config.schema import ConstantArrivals, Federation, LognormalArrivals
from fedloom.errors import UsageError
from fedloom.selection.cohort import Cohort, Schedule, Synchronous
from fedloom.selection.uniform import uniform
from fedloom.vector.streams import stream

__all__ = ["ArrivalModel", "Arrivals", "Constant", "Lognormal", "make_schedule"]


class ArrivalModel(Protocol):
    """How long clients take."""

    def seconds(self, client: str, version: int) -> float:
        """From the moment a client is sent a version until its update has arrived; of one answer for one question."""
        ...


class Constant:
    """All clients take equally long."""

    def __init__(self, settings: ConstantArrivals) -> None:
        self._settings = settings

    def seconds(self, client: str, version: int) -> float:
        """See `ArrivalModel.seconds`."""
        return self._settings.seconds


class Lognormal:
    """seconds * exp(speed_sigma * z_k + sigma * z_kt): z_k is a client's own, z_kt another each time; both standard normal."""

    def __init__(self, settings: LognormalArrivals, *, seed: int) -> None:
        self._settings, self._seed = settings, seed

    def seconds(self, client: str, version: int) -> float:
        """See `ArrivalModel.seconds`."""
        own = stream(self._seed, "speed", client).standard_normal()
        now = stream(self._seed, "duration", client, version).standard_normal()
        exponent = self._settings.speed_sigma * own + self._settings.sigma * now
        return float(self._settings.seconds * np.exp(exponent))


class Flight(NamedTuple):
    """A client under way, by its place; the first to arrive sorts first, of those at one instant the first that was sent."""

    arrives: float
    sent: int
    client: int
    version: int


class Arrivals:
    """The cohorts of a run whose clients arrive one by one."""

    _last: Cohort

    def __init__(
        self, clients: Mapping[int, str], in_flight: int | None, buffer: int, model: ArrivalModel, *, seed: int
    ) -> None:
        self.in_flight = min(in_flight or len(clients), len(clients))
        if buffer > self.in_flight:
            what = f"the server waits for {buffer} updates, and only {self.in_flight} clients are under way"
            raise UsageError(what, where="algorithm.buffer", fix=f"set it to at most {self.in_flight}")
        self._clients, self._names = list(clients), list(clients.values())
        self._buffer, self._model, self._seed = buffer, model, seed
        self._begin()

    def round(self, number: int) -> Cohort:
        """See `Schedule.round`; an earlier round than the last that was asked for means beginning again."""
        if number < self._last.number:
            self._begin()
        while self._last.number < number:
            self._last = self._next(self._last.number + 1)
        return self._last

    def _begin(self) -> None:
        self._now, self._sent = 0.0, count()
        self._flying: list[Flight] = []
        self._free = np.ones(len(self._clients), dtype=bool)
        self._last = Cohort(0, {})

    def _next(self, number: int) -> Cohort:
        """Let updates arrive until the buffer is full."""
        arrived: list[Flight] = []
        draws = count()
        while len(arrived) < self._buffer:
            if not self._flying or self._flying[0].arrives > self._now:  # all of this instant are in
                self._refill(number - 1, next(draws))
                self._now = self._flying[0].arrives
            arrived.append(heappop(self._flying))
        for flight in arrived:
            self._free[flight.client] = True
        versions = sorted({flight.version for flight in arrived})
        started = {v: sorted(self._clients[f.client] for f in arrived if f.version == v) for v in versions}
        return Cohort(number, started, frozenset(flight.version for flight in self._flying), self._now)

    def _refill(self, version: int, draw: int) -> None:
        """Send the version to as many free clients as are missing."""
        free = np.flatnonzero(self._free)
        missing = self.in_flight - len(self._flying)
        for client in free[uniform(len(free), missing, seed=self._seed, round=version + 1, draw=draw)].tolist():
            seconds = self._model.seconds(self._names[client], version)
            heappush(self._flying, Flight(self._now + seconds, next(self._sent), client, version))
            self._free[client] = False


def make_schedule(federation: Federation, clients: Mapping[int, str], awaits: int | None, *, seed: int) -> Schedule:
    """The schedule over clients, their ids by their numbers, ascending; `awaits` is an asynchronous algorithm's buffer, or None.

    Raises UsageError when fewer clients are under way than the server waits for.
    """
    if awaits is None:
        return Synchronous(list(clients), federation.clients_per_round, seed=seed)
    settings = federation.arrivals or LognormalArrivals(kind="lognormal")
    model = Constant(settings) if isinstance(settings, ConstantArrivals) else Lognormal(settings, seed=seed)
    return Arrivals(clients, federation.clients_per_round, awaits, model, seed=seed)
