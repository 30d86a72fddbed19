"""The order in which clients' updates arrive at a server that does not wait for all of them.

A fixed number of clients is always under way. Each takes the time that an arrival model gives it. When `buffer` updates have
arrived, the server makes its next version; at every instant at which updates arrive, the clients that are missing are drawn
uniformly from those that are free, and start from the version of that instant. An update that arrives together with the one that
fills the buffer goes into the next. A client is free when it is neither under way nor waiting in the buffer: it would train from
the same version again. So a client starts from a version at most once, and is never under way twice.

With devices a client takes as long as its device does. Those that are offline are not drawn; one that goes offline before its
update has arrived is lost, and its place is free.

All this follows from the seed and the arrival model alone, so it is the same whatever is trained, and is simply run again from the
start when a federation is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np

from fedloom.config.federation import ConstantArrivals, LognormalArrivals
from fedloom.devices.availability import Clients
from fedloom.devices.population import Population, Work
from fedloom.errors import RunError, UsageError
from fedloom.selection.clock import ARRIVED, FATES, OFFLINE, Attempts, attempts
from fedloom.selection.cohort import Cohort
from fedloom.selection.pool import Feedback, State, uniform
from fedloom.vector.streams import stream

__all__ = ["AlwaysThere", "ArrivalModel", "Arrivals", "Constant", "Lognormal", "OnDevices"]

_PATIENCE = 10  # times as many clients as are under way; after so many lost in a row there is no use in going on


class ArrivalModel(Protocol):
    """How long clients take."""

    population: Population | None
    """The devices, where they are known."""
    work: Work | None
    """What they are asked for."""

    def seconds(self, client: int, name: str, version: int, now: float) -> tuple[float, bool]:
        """From the moment a client, by its place, is sent a version until it is over; and whether its update has arrived."""
        ...

    def online(self, clients: Clients, now: float) -> Clients:
        """Which of these clients are there."""
        ...

    def next_start(self, now: float) -> float:
        """When, after this, a client comes online; raises RunError where none does."""
        ...


class AlwaysThere:
    """Clients of whom nothing is known but how long they take."""

    population: Population | None = None
    work: Work | None = None

    def online(self, clients: Clients, now: float) -> Clients:
        """See `ArrivalModel.online`."""
        return clients

    def next_start(self, now: float) -> float:
        """See `ArrivalModel.next_start`."""
        return now


class Constant(AlwaysThere):
    """All clients take equally long."""

    def __init__(self, settings: ConstantArrivals) -> None:
        self._settings = settings

    def seconds(self, client: int, name: str, version: int, now: float) -> tuple[float, bool]:
        """See `ArrivalModel.seconds`."""
        return self._settings.seconds, True


class Lognormal(AlwaysThere):
    """seconds * exp(speed_sigma * z_k + sigma * z_kt): z_k is a client's own, z_kt another each time; both standard normal."""

    def __init__(self, settings: LognormalArrivals, *, seed: int) -> None:
        self._settings, self._seed = settings, seed

    def seconds(self, client: int, name: str, version: int, now: float) -> tuple[float, bool]:
        """See `ArrivalModel.seconds`."""
        own = stream(self._seed, "speed", name).standard_normal()
        again = stream(self._seed, "duration", name, version).standard_normal()
        exponent = self._settings.speed_sigma * own + self._settings.sigma * again
        return float(self._settings.seconds * np.exp(exponent)), True


@dataclass
class OnDevices:
    """Clients take as long as their devices do, while they are online."""

    population: Population | None
    work: Work | None

    def seconds(self, client: int, name: str, version: int, now: float) -> tuple[float, bool]:
        """See `ArrivalModel.seconds`."""
        assert self.population is not None and self.work is not None
        place = np.array([client])
        needed = float(self.population.times(self.work, place).total[0])
        left = float(self.population.availability.until(place, now)[0]) - now
        return min(needed, left), needed <= left

    def online(self, clients: Clients, now: float) -> Clients:
        """See `ArrivalModel.online`."""
        assert self.population is not None
        return clients[self.population.availability.until(clients, now) > now]

    def next_start(self, now: float) -> float:
        """See `ArrivalModel.next_start`."""
        assert self.population is not None
        return self.population.first_online(now)


class Flight(NamedTuple):
    """A client under way, by its place; the first to be over sorts first, of those at one instant the first that was sent."""

    over: float
    sent: int
    client: int
    version: int
    began: float
    lost: bool = False
    """Whether it goes offline before its update has arrived."""


class Arrivals:
    """The cohorts of a run whose clients arrive one by one."""

    learns = False
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

    def round(self, number: int, work: Work | None = None, again: bool = False) -> Cohort:
        """See `Schedule.round`; an earlier round than the last that was asked for means beginning again."""
        if number < self._last.number:
            self._begin()
        while self._last.number < number:
            self._last = self._next(self._last.number + 1)
        return self._last

    def told(self, number: int, feedback: Feedback) -> None:
        """Nothing is learnt."""

    def state(self) -> State:
        """Nothing: the rounds before are run again, which trains nothing."""
        return {}

    def restore(self, state: State) -> None:
        """See `state`."""

    def _begin(self) -> None:
        self._now, self._sent = 0.0, count()
        self._flying: list[Flight] = []
        self._free = np.ones(len(self._clients), dtype=bool)
        self._last = Cohort(0, {})

    def _next(self, number: int) -> Cohort:
        """Let updates arrive until the buffer is full."""
        arrived: list[Flight] = []
        lost: list[Flight] = []
        draws = count()
        while len(arrived) < self._buffer:
            if not self._flying or self._flying[0].over > self._now:  # all of this instant are in
                self._refill(number - 1, next(draws))
                self._now = self._flying[0].over
            flight = heappop(self._flying)
            if flight.lost:
                self._free[flight.client] = True
                lost.append(flight)
                self._check(number, lost, arrived)
            else:
                arrived.append(flight)
        for flight in arrived:
            self._free[flight.client] = True
        versions = sorted({flight.version for flight in arrived})
        started = {v: sorted(self._clients[f.client] for f in arrived if f.version == v) for v in versions}
        needed = frozenset(flight.version for flight in self._flying)
        return Cohort(number, started, needed, self._now, attempts=self._attempts(arrived, lost))

    def _refill(self, version: int, draw: int) -> None:
        """Send the version to as many free clients as are missing; where nobody is under way, when the first is there."""
        free = self._model.online(np.flatnonzero(self._free), self._now)
        if not len(free) and not self._flying:
            self._now = self._model.next_start(self._now)
            free = self._model.online(np.flatnonzero(self._free), self._now)
        missing = self.in_flight - len(self._flying)
        for client in free[uniform(len(free), missing, seed=self._seed, round=version + 1, draw=draw)].tolist():
            seconds, whole = self._model.seconds(client, self._names[client], version, self._now)
            heappush(self._flying, Flight(self._now + seconds, next(self._sent), client, version, self._now, not whole))
            self._free[client] = False

    def _attempts(self, arrived: Sequence[Flight], lost: Sequence[Flight]) -> Attempts | None:
        """What became of them, where devices are known."""
        population, work = self._model.population, self._model.work
        if population is None or work is None:
            return None
        own = [*arrived, *lost]
        places = np.array([flight.client for flight in own])
        began = np.array([flight.began for flight in own])
        seconds = np.array([flight.over for flight in own]) - began
        fate = np.repeat([FATES.index(ARRIVED), FATES.index(OFFLINE)], [len(arrived), len(lost)]).astype(np.int8)
        found = attempts(population, places, work, began, seconds, fate)
        return replace(found, clients=np.asarray(self._clients)[places])

    def _check(self, number: int, lost: Sequence[Flight], arrived: Sequence[Flight]) -> None:
        if len(lost) >= _PATIENCE * self.in_flight and not arrived:
            what = f"in round {number}, {len(lost)} clients in a row went offline before they had finished"
            raise RunError(what, fix="ask for less (`local.steps`), or give other `devices`")
