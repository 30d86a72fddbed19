"""Rounds that begin when the last one is over: a cohort is selected, asked, and waited for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedloom.config.devices import AllWait, Wait
from fedloom.devices.availability import Clients
from fedloom.devices.population import Population, Work
from fedloom.errors import RunError
from fedloom.selection.base import Selector
from fedloom.selection.clock import asked, play
from fedloom.selection.cohort import Cohort
from fedloom.selection.pool import Feedback, Pool, State

__all__ = ["Synchronous"]

_PATIENCE = 10  # rounds in a row without a single update, after which there is no use in going on


@dataclass
class Synchronous:
    """A cohort that starts from the newest version. `clients` are the numbers of those that can be selected, ascending.

    Everything else here counts clients by their place among these: `sizes`, the population and the work are in that order.
    """

    clients: Clients
    wanted: int | None
    """Clients whose updates are wanted; all when left out."""
    selector: Selector
    seed: int
    sizes: NDArray[np.int64]
    population: Population | None = None
    wait: Wait = field(default_factory=lambda: AllWait(kind="all"))
    now: float = 0.0
    """The virtual time at which the next round begins."""

    def __post_init__(self) -> None:
        self.wanted = min(self.wanted or len(self.clients), len(self.clients))
        self.in_flight = min(asked(self.wait, self.wanted), len(self.clients))
        self.learns = self.selector.needs_losses or type(self.selector).learn is not Selector.learn
        self._known = self.selector.begin(self.sizes)
        self._last = np.zeros(0, dtype=np.int64)
        self._empty = 0

    def round(self, number: int, work: Work | None = None, again: bool = False) -> Cohort:
        """See `Schedule.round`; the clock goes on to the round's end."""
        pool = Pool(number, self.seed, self.sizes, self.now, self.population, work)
        if not again:
            self._last = np.sort(self.selector.select(pool, self.in_flight, self._known))
            if not len(self._last) and pool.population is not None and not pool.online.any():
                pool = replace(pool, now=pool.population.first_online(self.now))
                self._last = np.sort(self.selector.select(pool, self.in_flight, self._known))
        if not len(self._last):
            why = f"{self.selector.title} found none of the {len(pool.candidates)} clients online fit"
            raise RunError(f"nobody could be selected for round {number}", why=why, fix="change `federation.selection`")
        if self.population is None:
            return Cohort(number, {number - 1: self.clients[self._last].tolist()})
        assert work is not None and self.wanted is not None
        stretch = self.selector.stretch(pool, self._last, self._known)
        if stretch is not None:
            passes = np.broadcast_to(work.passes, len(self.clients)).copy()
            passes[self._last] *= stretch
            work = work._replace(passes=passes)
        self.now, attempts = play(self.population, self._last, work, pool.now, self.wait, self.wanted)
        arrived = self.clients[self._last[attempts.arrived]].tolist()
        self._empty = 0 if arrived else self._empty + 1
        if self._empty == _PATIENCE:
            fastest = float(self.population.times(work, self._last).total.min())
            what = f"in {_PATIENCE} rounds in a row, the last of them round {number}, no client could finish"
            why = f"the fastest of the last would have taken {fastest:,.0f} s"
            fix = "wait longer (`federation.wait`), ask for less (`local.steps`), or select among the fast (`federation.selection`)"
            raise RunError(what, why=why, fix=fix)
        named = replace(attempts, clients=self.clients[attempts.clients])
        times = {} if stretch is None else dict(zip(self.clients[self._last].tolist(), stretch.tolist(), strict=True))
        started = {number - 1: arrived} if arrived else {}
        return Cohort(number, started, seconds=self.now, stretch=times, attempts=named)

    def told(self, number: int, feedback: Feedback) -> None:
        """See `Schedule.told`."""
        places = np.searchsorted(self.clients, feedback.clients)
        self.selector.learn(self._known, feedback._replace(clients=places), number)

    def state(self) -> State:
        """See `Schedule.state`."""
        own = {f"selector.{name}": value for name, value in self._known.items()}
        return own | {"last": self._last, "clock": np.array([self.now, self._empty], dtype=np.float64)}

    def restore(self, state: State) -> None:
        """See `Schedule.restore`; a checkpoint from before there were schedules to keep has no state."""
        if not state:
            return
        self._known = {name.partition(".")[2]: value for name, value in state.items() if name.startswith("selector.")}
        self._last = state["last"].astype(np.int64)
        self.now, self._empty = float(state["clock"][0]), int(state["clock"][1])
