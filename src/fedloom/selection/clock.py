"""A round on the virtual clock: how long each client that is asked takes, who goes offline, and when the round is over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedloom.config.devices import AllWait, DeadlineWait, OvercommitWait, QuorumWait, Wait
from fedloom.devices.availability import Clients
from fedloom.devices.population import Population, Times, Work

__all__ = ["ARRIVED", "FATES", "LATE", "OFFLINE", "Attempts", "asked", "attempts", "play"]

ARRIVED, LATE, OFFLINE = "arrived", "late", "offline"
FATES = (ARRIVED, LATE, OFFLINE)


@dataclass(frozen=True)
class Attempts:
    """What became of the clients that were asked; all are `[m]`."""

    clients: Clients
    fate: NDArray[np.int8]
    """The place in `FATES`: its update is in the round; it was still at it when the round was over; it went offline before."""
    began: NDArray[np.float64]
    seconds: NDArray[np.float64]
    """For how long it worked, receiving and sending included."""
    bytes_down: NDArray[np.float64]
    bytes_up: NDArray[np.float64]
    """The bytes that it received, and sent, by then."""

    @property
    def arrived(self) -> NDArray[np.bool_]:
        """`[m]`: whose updates are in the round."""
        found: NDArray[np.bool_] = self.fate == FATES.index(ARRIVED)
        return found


def asked(wait: Wait, wanted: int) -> int:
    """How many clients are asked when so many are wanted."""
    return math.ceil(round(wait.factor * wanted, 9)) if isinstance(wait, OvercommitWait) else wanted


def play(
    population: Population, clients: Clients, work: Work, now: float, wait: Wait, wanted: int
) -> tuple[float, Attempts]:
    """When a round is over that begins now, and what became of its clients.

    A client that goes offline before it has sent all is lost, and the server knows at once. Who is still at work when the round is
    over stops then.
    """
    times, left = population.times(work, clients), population.availability.until(clients, now) - now
    ready = np.where(left < times.total, np.inf, times.total)
    over = np.minimum(times.total, left)
    most = len(clients)
    if isinstance(wait, OvercommitWait):
        most = wanted
    elif isinstance(wait, QuorumWait):
        most = min(wait.updates, most)
    order = np.lexsort((clients, ready))
    taken = order[:most]
    end = float(over.max())
    if np.isfinite(ready[taken]).all() and not isinstance(wait, AllWait | DeadlineWait):
        end = float(ready[taken[-1]])
    elif isinstance(wait, DeadlineWait):
        end = min(end, wait.seconds)
    fate = np.full(len(clients), FATES.index(LATE), dtype=np.int8)
    fate[(left < times.total) & (left <= end)] = FATES.index(OFFLINE)
    fate[taken[ready[taken] <= end]] = FATES.index(ARRIVED)
    return now + end, attempts(
        population, clients, work, np.full(len(clients), now), np.minimum(over, end), fate, times
    )


def attempts(
    population: Population,
    clients: Clients,
    work: Work,
    began: NDArray[np.float64],
    seconds: NDArray[np.float64],
    fate: NDArray[np.int8],
    times: Times | None = None,
) -> Attempts:
    """The attempts of clients that worked for so long."""
    times = times or population.times(work, clients)
    down = _passed(work.bytes_down, clients, seconds, times.down)
    up = _passed(work.bytes_up, clients, seconds - times.down - times.compute, times.up)
    return Attempts(clients, fate, began, seconds, down, up)


def _passed(
    whole: float | NDArray[np.floating], clients: Clients, seconds: NDArray[np.float64], needed: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`[m]`: of a message that takes some seconds, the bytes that have passed after these."""
    own = whole[clients] if isinstance(whole, np.ndarray) else np.full(len(clients), float(whole))
    share = np.divide(seconds, needed, out=np.ones_like(seconds), where=needed > 0)
    passed: NDArray[np.float64] = np.rint(own * np.clip(share, 0.0, 1.0))
    return passed
